"""config.json of a model folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from requant.config.base import Implementation, OtherFiles
from requant.errors import ArtifactError
from requant.expected import expected
from requant.models.folder import ADAPTER_CONFIG_NAME
from requant.outside.json_text import read_object
from requant.wording import shown

OTHER_FILES: dict[OtherFiles, str] = {
    "transformers_weights": "model.safetensors",
    "configuration_files": "config.json",
}
"""Field of config.json -> the file in whose place it has transformers load another."""
IMPLEMENTATIONS = frozenset(get_args(Implementation))

GPTQ_BITS = (2, 3, 4, 8)
LAYERS = re.compile(r"n_layers?|num(_hidden|_decoder)?_layers")
"""Names of the field that says how many blocks a network has."""
MOST = (
    (LAYERS, 10_000),
    (re.compile(r"num_(local_|routed_)?experts|n_routed_experts"), 1 << 16),
    (re.compile(r"(\w+_)?head_dim|num_(\w+_)?heads|n_head|num_labels"), 1 << 20),
)
"""Names of the fields of which transformers makes lists and buffers -> how large they may be."""
OWN_ATTENTION = frozenset({"eager", "sdpa", "flex_attention"})
"""What transformers computes itself; for the others it may fetch a kernel from the hub."""


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's config.json.

    Raises:
        ArtifactError: If it is missing or not a JSON object, holds an absurd number, or makes
            transformers load another file than the weights that are checked, or fetch and run code.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ArtifactError(f"{path}: is missing; {folder} is not a model folder")
    config = read_object(path)
    _check_fields(path, config)
    return config


class _Fields(BaseModel):
    """What is read of config.json, with the types it must have; null counts as absent."""

    model_config = ConfigDict(extra="ignore", strict=True)

    architectures: list[str] | None = None
    model_type: str | None = None
    vocab_size: int | None = Field(None, ge=1)
    num_hidden_layers: int | None = Field(None, ge=0)
    tie_word_embeddings: bool | None = None
    quantization_config: dict[str, Any] | None = None


def check_depth(folder: Path, config: dict[str, Any], tensors: int) -> None:
    """Refuse a network deeper than a folder's weights: to build it alone could take for ever.

    Args:
        folder: Of the model.
        config: Its config.json.
        tensors: In its weights; a layer has one at least.

    Raises:
        ArtifactError: Naming the field.
    """
    for name, value in _numbers(config):
        if LAYERS.fullmatch(name) and value > tensors:
            raise ArtifactError(
                f"{folder / 'config.json'}: {name}={value}, and the weights hold {tensors} "
                "tensors; the two are not of one model: copy both anew"
            )


def check_no_adapter(folder: Path) -> None:
    """Refuse a model folder with an adapter: transformers would load it into the model, unasked.

    Raises:
        ArtifactError: Naming the file, and the way out.
    """
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise ArtifactError(
            f"{folder / ADAPTER_CONFIG_NAME}: transformers would load this adapter into the model "
            "beside it; move it, with its weights, to a folder of its own, and merge it with "
            "`requant merge` where it belongs in the model"
        )


def _check_fields(path: Path, config: dict[str, Any]) -> None:
    try:
        _Fields.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ArtifactError(
            f"{path}: {name}={shown(config.get(name))}: {expected(first)}; copy the file anew"
        ) from error
    for field, checked in OTHER_FILES.items():
        if (other := config.get(field)) is not None:
            raise ArtifactError(other_file(path, field, other, checked))
    for name, value in _implementations(config):
        if value not in OWN_ATTENTION and ("/" in value or "attn" in name):
            raise ArtifactError(
                f"{path}: {name}={shown(value)}: transformers may fetch the code of it from the "
                "hub and run it; remove the field, set it to sdpa or eager, or name it in "
                "prepare_base.leave_out"
            )

    for name, number in _numbers(config):
        most = next((most for pattern, most in MOST if pattern.fullmatch(name)), None)
        if most is not None and number > most:
            raise ArtifactError(
                f"{path}: {name}={shown(number)}, at most {most} is read; correct it, or copy the "
                "file anew"
            )


def other_file(path: Path, field: OtherFiles, value: object, checked: str) -> str:
    """Say why a field that has transformers load another file is refused, and the way out.

    Args:
        path: Of the file with the field.
        field: Its name.
        value: What it says.
        checked: The file that is checked.
    """
    return (
        f"{path}: {field}={shown(value)} makes transformers load that file instead of {checked}, "
        "which is what is checked; remove the field, or name it in prepare_base.leave_out, and "
        f"where that file is the right one, give it the name {checked}"
    )


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Go through the whole numbers among the fields, of the parts of a model too."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def _implementations(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Go through the fields that name how a layer computes, of the parts of a model too."""
    for name, value in config.items():
        if name in IMPLEMENTATIONS:
            chosen = value.values() if isinstance(value, dict) else [value]
            yield from ((name, each) for each in chosen if isinstance(each, str))
        elif isinstance(value, dict):
            yield from _implementations(value)


def quantization_of(config: dict[str, Any]) -> str | None:
    """Name the quantization of a model: nf4, int8, gptq, or None.

    Args:
        config: From `read_model_config`.

    Raises:
        ArtifactError: On a method requant cannot load.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    method, bits = quantization.get("quant_method"), quantization.get("bits")
    if method == "gptq" and type(bits) is int and bits in GPTQ_BITS:
        return "gptq"
    if method == "bitsandbytes":
        return "nf4" if quantization.get("load_in_4bit") else "int8"
    raise ArtifactError(
        f"config.json: quantization_config={shown(quantization)}; expected quant_method "
        f"bitsandbytes, or gptq with bits one of {', '.join(map(str, GPTQ_BITS))}"
    )
