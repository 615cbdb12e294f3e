"""The door for other people's models: what of a folder is taken, and why a folder is no base."""

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from requant.errors import ConfigError, RequantError
from requant.models.config import read_model_config
from requant.models.folder import ADAPTER_CONFIG_NAME, INDEX_NAME
from requant.models.headers import numbered_shards, read_index, read_shard_header, weight_files
from requant.models.skeleton import (
    Skeleton,
    built,
    loading_problems,
    one_line,
    read_causal_config,
)
from requant.models.small_files import json_problems
from requant.models.tokenizer import load_tokenizer
from requant.outside.json_text import read_object
from requant.outside.tokenizer_patterns import TOKENIZER_NAME, pattern_faults
from requant.store.manifest import MANIFEST_NAME
from requant.wording import data_size, few, shown

# What makes a model: weights without pickles, configuration, tokenizer, template, licence.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")
ANY_TOKENIZER = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt")
"""Of these a base has one at least. `requant.models.folder` knows fewer: what else transformers can
read becomes a tokenizer.json in `prepare_base`."""
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, "adapter_model*.safetensors")
"""transformers loads an adapter that lies in the folder instead of the model beside it."""
OTHER_FORMATS = ("consolidated*.safetensors",)
"""The same weights again, as the model's authors name their tensors."""


@dataclass(frozen=True)
class BaseFiles:
    """What of a folder makes the model."""

    taken: tuple[Path, ...]
    """By name."""
    weights: tuple[Path, ...]
    """The weights among them that transformers loads."""
    left_out: tuple[Path, ...]
    """Weights, adapters and indices that transformers does not load, or instead of the model."""


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder that is to be a base."""

    files: BaseFiles | None
    """None where the folder is not even one of a model."""
    parameters: int
    problems: tuple[str, ...]
    """One line each; any of them makes the folder unusable."""
    notes: tuple[str, ...]
    """What is left out or passed over, one line each."""


def check_base(folder: Path, origin: str) -> list[str]:
    """Say why a folder cannot be a base, one problem a line; nothing if it can.

    No tensor is read: files, headers, and config and tokenizer as transformers loads them.

    Args:
        folder: Hugging Face folder.
        origin: The configuration field and its value, which begins each line.
    """
    return list(inspect_base(folder, origin).problems)


def inspect_base(folder: Path, origin: str) -> Inspection:
    """Find problems and what is passed over; see `check_base`."""
    try:
        files = select_files(folder, origin)
    except ConfigError as error:
        return Inspection(None, 0, (str(error),), ())
    problems: list[str] = []
    notes = [_left_out(files)] if files.left_out else []
    skeleton: Skeleton | None = None
    try:
        skeleton = built(folder, files.weights)
    except RequantError as error:
        problems.append(str(error))
    else:
        problems += loading_problems(skeleton)
        if skeleton.unread:
            notes.append(
                f"{len(skeleton.unread)} tensors are not part of the network and never used: "
                f"{few(skeleton.unread)}"
            )
    # Where config.json cannot be read the tokenizer fails by the same.
    problems += small_files_problems(folder) if skeleton else json_problems(folder)
    return Inspection(
        files,
        skeleton.parameters if skeleton else 0,
        tuple(f"{origin}: {problem}" for problem in problems),
        tuple(notes),
    )


def check_small_files(folder: Path, origin: str) -> list[str]:
    """Say, one problem a line, why a folder whose weights are still elsewhere cannot be a base.

    Args:
        folder: With config.json and tokenizer.
        origin: The configuration field and its value, which begins each line.
    """
    try:
        read_causal_config(folder)
    except RequantError as error:
        return [f"{origin}: {error}"]
    return [f"{origin}: {problem}" for problem in small_files_problems(folder)]


def select_files(folder: Path, origin: str) -> BaseFiles:
    """Choose the files that make a 16-bit model, exactly the weights transformers would load.

    Raises:
        ConfigError: If the folder is missing, lacks config.json, weights (also a shard its index
            names) or tokenizer, holds a file that is cut or no JSON, or a quantized model.
    """
    if not folder.is_dir():
        raise ConfigError(f"{origin} is not a folder; give one with config.json and *.safetensors")
    try:
        return _select(folder, origin)
    except ConfigError:
        raise
    except RequantError as error:
        raise ConfigError(f"{origin}: {error}") from error


def _select(folder: Path, origin: str) -> BaseFiles:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name != MANIFEST_NAME
        and not path.name.startswith(".")
        and _matches(path.name, MODEL_FILES)
    )
    names = [path.name for path in found]
    weights = weight_files(folder)
    missing = [
        wanted
        for wanted, patterns in (
            ("config.json", ("config.json",)),
            (f"a tokenizer ({', '.join(ANY_TOKENIZER)})", ANY_TOKENIZER),
        )
        if not any(_matches(name, patterns) for name in names)
    ]
    indexed = INDEX_NAME in names and "model.safetensors" not in names
    if indexed:
        missing += sorted(set(read_index(folder).values()) - set(names))
    elif not weights:
        missing.append(_lacking_weights(found))
    if missing:
        raise ConfigError(
            f"{origin} lacks {'; '.join(missing)} (found {', '.join(names) or 'none'})"
        )
    if method := _quantization(read_model_config(folder)):
        raise ConfigError(
            f"{origin} is quantized ({method}); the base must be the 16-bit original, "
            "quantize_base makes the quantized one from it"
        )
    for path in weights:
        read_shard_header(path)
    left_out = [
        path
        for path in found
        if (path.suffix == ".safetensors" and path not in weights)
        or (path.name == INDEX_NAME and not indexed)
        or _matches(path.name, ADAPTER_FILES)
    ]
    taken = tuple(path for path in found if path not in left_out)
    return BaseFiles(taken, tuple(weights), tuple(left_out))


def small_files_problems(folder: Path) -> list[str]:
    """Say what is wrong with the files that travel and are not weights, one line each."""
    # What is refused for what it says transformers is not to read.
    return json_problems(folder) or tokenizer_problems(folder)


def missing_index(files: BaseFiles) -> dict[str, Any] | None:
    """Return the index that shards without one need to be loaded; None where all is there."""
    if len(files.weights) == 1 or any(path.name == INDEX_NAME for path in files.taken):
        return None
    headers = {path.name: read_shard_header(path) for path in files.weights}
    tensors = [(name, shard, t) for shard, h in headers.items() for name, t in h.tensors.items()]
    return {
        "metadata": {"total_size": sum(tensor.end - tensor.start for _, _, tensor in tensors)},
        "weight_map": {name: shard for name, shard, _ in sorted(tensors, key=lambda item: item[0])},
    }


def _quantization(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return str(found.get("quant_method")) if isinstance(found, dict) and found else None


def _lacking_weights(found: Sequence[Path]) -> str:
    """Name the weights that are wanted, and why those that lie there are not they."""
    names = [path.name for path in found if path.suffix == ".safetensors"]
    wanted = "weights (*.safetensors; pickled *.bin are not read)"
    if any(_matches(name, ADAPTER_FILES) for name in names):
        return f"{wanted}: it is an adapter; give the model it was trained on"
    if any(_matches(name, OTHER_FORMATS) for name in names):
        return (
            "weights that transformers loads: consolidated*.safetensors name their tensors "
            "otherwise; download model*.safetensors of the same repository too"
        )
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in names):
        return f"shards: {few(numbered_shards(names)[1])}"
    if len(names) == 1:
        return f"model.safetensors: rename {names[0]}, the only name transformers loads"
    return wanted


def _left_out(files: BaseFiles) -> str:
    size = sum(path.stat().st_size for path in files.left_out)
    return (
        f"left out {len(files.left_out)} files ({data_size(size)}) that are not the model: "
        f"{few(path.name for path in files.left_out)}; the weights are "
        f"{few(path.name for path in files.weights)}"
    )


def tokenizer_problems(folder: Path) -> list[str]:
    """Say why a folder's tokenizer cannot be trained or generated with, one line each."""
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and "tokenizer.model" in names and not _has_sentencepiece():
        return [
            "tokenizer.model is read by the package sentencepiece, which is not installed: "
            "pip install sentencepiece, or save the tokenizer as tokenizer.json"
        ]
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # whatever a damaged or foreign tokenizer makes transformers raise
        broken = [f"{folder / TOKENIZER_NAME}: {fault}" for fault in pattern_faults(folder)]
        return broken or [
            f"{folder}: transformers cannot load the tokenizer ({one_line(error)}); expected "
            f"{TOKENIZER_NAME} and tokenizer_config.json as they were released: copy both anew"
        ]
    if not tokenizer.is_fast:
        return [
            f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json and cannot be "
            "turned into one; take a release of the model that has it"
        ]
    problems = []
    if tokenizer.eos_token_id is None:
        problems.append(
            "the tokenizer has no eos_token: no answer could be taught to end; set eos_token in "
            f"tokenizer_config.json{_likely_end(folder, tokenizer)}"
        )
    rows = read_model_config(folder).get("vocab_size")
    over = sorted(
        (number, token)
        for token, number in tokenizer.get_vocab().items()
        if isinstance(rows, int) and number >= rows
    )
    if over:
        problems.append(
            f"the tokenizer has {len(over)} tokens past the embedding (config.json vocab_size="
            f"{rows}): {few(f'{shown(token)} ({number})' for number, token in over)}; give the "
            "tokenizer the model was trained with, or resize the embedding"
        )
    return problems


def _likely_end(folder: Path, tokenizer: Any) -> str:
    """Name the token that the model's own configuration ends with."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ends = read_object(path).get("eos_token_id") if path.exists() else None
        end = ends[0] if isinstance(ends, list) and ends else ends
        known = type(end) is int and 0 <= end < len(tokenizer)
        if known and (token := tokenizer.convert_ids_to_tokens(end)):
            return f", e.g. {shown(token)}, the eos_token_id={end} of {name}"
    return " to the token that ends a turn in its chat template"


def _has_sentencepiece() -> bool:
    return importlib.util.find_spec("sentencepiece") is not None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
