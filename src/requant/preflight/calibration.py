"""Is there enough text to calibrate a quantization with? Known before anything is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.config import Config
from requant.config.base import StdlibBase
from requant.config.data import FilesData, HubData
from requant.config.quantizing import GptqFields
from requant.errors import RequantError
from requant.models.skeleton import empty_model, read_causal_config
from requant.models.tokenizer import load_tokenizer
from requant.preflight.known_looks import unless_known
from requant.preflight.problem import Problem
from requant.quantization.calibration import (
    Pool,
    check_tokens,
    encode_calibration,
    read_pool,
    sample_calibration,
)
from requant.quantization.quantizable import layers_of
from requant.store import Store, materialise

VERSION = 1
"""Raised with every change of what is looked for: what an earlier look found right is forgotten."""


def prepared_problems(config: Config, base: str, data: str) -> list[Problem]:
    """Count the calibration of a night whose base or rows no look before it knew.

    Args:
        config: The whole configuration.
        base: Digest of the artifact of prepare_base.
        data: That of prepare_data.
    """
    if not isinstance(config.prepare_base.source, StdlibBase) and isinstance(
        config.prepare_data.source, FilesData | HubData
    ):
        return []
    sections = [(name, fields.model_dump(mode="json")) for name, fields in _quantizations(config)]
    what = {
        "look": "calibration",
        "version": VERSION,
        "base": base,
        "data": data,
        "seed": config.seed,
        "sections": sections,
    }
    store = Store(config.state.resolve())

    def look() -> list[Problem]:
        folder = materialise(store, base)
        pool = read_pool(materialise(store, data))
        return list(calibration_problems(config, folder, load_tokenizer(folder), pool))

    return unless_known(config.state, what, look) if sections else []


def calibration_problems(
    config: Config, folder: Path, tokenizer: Any, pool: Pool
) -> Iterator[Problem]:
    """Sample and encode what each quantization will be calibrated with, and count its tokens.

    Args:
        config: The whole configuration.
        folder: The base; what is quantized again has its layers.
        tokenizer: Of the base.
        pool: Tonight's rows and general text.
    """
    sections = list(_quantizations(config))
    if not sections:
        return
    features = layers_of(empty_model(read_causal_config(folder)), ()).features
    widest = max(features.values(), default=0)
    found = []
    for name, fields in sections:
        try:
            calibration = sample_calibration(
                tokenizer, pool, fields.calibration_rows, config.seed, fields.general_share
            )
            encoded = encode_calibration(tokenizer, calibration.texts, fields.calibration_length)
            check_tokens(encoded, fields.calibration_min_tokens or widest, name)
        except RequantError as error:
            found.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    # Candidates that differ elsewhere have the same calibration.
    yield from dict.fromkeys(found)


def _quantizations(config: Config) -> Iterator[tuple[str, GptqFields]]:
    base, again = config.quantize_base, config.requantize_gptq
    if base.enabled and base.method == "gptq":
        yield "quantize_base", base
    if again.enabled:
        yield from (("requantize_gptq", fields) for fields in again.tried())
