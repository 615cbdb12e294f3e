"""Read a peft adapter folder as updates of the original's tensors, by the files alone."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.contract import some
from requant.errors import ContractError
from requant.merging.updates import (
    Apply,
    LowRank,
    Update,
    chained,
    merge_low_rank,
    square_of,
)
from requant.weights import TensorHeader, read_shard_header

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
"""peft's name for the wrapped model inside adapter files."""

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

UNMERGEABLE = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CARTRIDGE", "CPT")
"""Adapters that add tokens or attention, not weights (`MULTITASK_PROMPT_TUNING` is one too)."""

NEUTRAL_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they were."""

REFUSED_OPTIONS = (
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Of LoraConfig: what trains or computes something that W + s B A does not say."""

FACTORS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
)


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that has been read but for its tensors' data."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    """Name without peft's prefix to header."""

    def load(self, name: str) -> "torch.Tensor":
        """Read one tensor as float32."""
        from safetensors import safe_open

        with safe_open(self.folder / WEIGHTS_NAME, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(PREFIX + name).float()
        return tensor


def read_adapter(folder: Path) -> Adapter:
    """Read the configuration and the names of an adapter.

    Raises:
        ContractError: If it is of a type that cannot be merged, or changes the base weights.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ContractError(
                f"{folder / name}: is missing; expected peft's {CONFIG_NAME} and {WEIGHTS_NAME} "
                "(requant reads no pickles: save the adapter again with a newer peft)"
            )
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    _check_type(folder, config)
    headers = read_shard_header(folder / WEIGHTS_NAME).tensors
    foreign = [name for name in headers if not name.startswith(PREFIX)]
    if foreign and config["peft_type"] == "LORA":
        raise ContractError(
            f"{folder / WEIGHTS_NAME}: {some(foreign)} do not begin with {PREFIX}; save the "
            "adapter with peft's save_pretrained"
        )
    tensors = {name.removeprefix(PREFIX): header for name, header in headers.items()}
    return Adapter(folder, config, tensors)


def _check_type(folder: Path, config: Mapping[str, Any]) -> None:
    if "peft_type" not in config:
        raise ContractError(f"{folder / CONFIG_NAME}: has no peft_type; expected peft's own file")
    kind = str(config["peft_type"])
    if kind in UNMERGEABLE or kind.endswith("PROMPT_TUNING"):
        raise ContractError(
            f"{folder}: peft_type={kind} adds tokens or attention, not weights: it cannot be "
            "merged. Evaluate and serve it as an adapter (merge_fp16.enabled=false), or train "
            "lora or dora"
        )
    if kind != "LORA":
        return
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in NEUTRAL_INITIALISATIONS:
        raise ContractError(
            f"{folder}: init_lora_weights={initialisation!r} moved the base weights when training "
            "began, so the original + B A is not what was trained. Convert the adapter with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...), or train with "
            "init_lora_weights=true"
        )
    for option in REFUSED_OPTIONS:
        if config.get(option):
            raise ContractError(
                f"{folder}: {option}={config[option]!r} is not a change of single weights that "
                "requant can merge; train without it"
            )


def lora_updates(adapter: Adapter, original: Mapping[str, TensorHeader]) -> dict[str, Update]:
    """Say what a LoRA adapter does to each tensor of the original.

    LoRA, rsLoRA (alpha / sqrt(rank), arXiv:2312.03732), DoRA, of linear layers and embeddings, with
    patterns of rank and alpha, trained biases, fully trained modules and a resized vocabulary.

    Args:
        adapter: Of peft_type LORA.
        original: Tensor name to header, with the names as in its files.

    Raises:
        ContractError: Naming the tensors of the adapter that do not fit or are missing.
    """
    factors, whole = split_names(adapter.tensors)
    updates = {locate(name, original): _replacement(adapter, key) for name, key in whole.items()}
    for module, names in factors.items():
        _check_factors(adapter, module, names)
        weight = locate(f"{module}.weight", original)
        transposed = "lora_embedding_A" in names or _is_transposed(adapter, module, original)
        update = _low_rank(adapter, module, names, transposed)
        updates[weight] = chained(updates.get(weight), update)
        if "lora_B.bias" in names:
            bias = locate(f"{module}.bias", original)
            updates[bias] = chained(updates.get(bias), _shift(adapter, module))
    _check_expected(adapter, factors, original)
    _check_whole(adapter, factors, {locate(name, original) for name in whole}, original)
    return updates


def is_additive(adapter: Adapter) -> bool:
    """Tell whether it only adds s B A to weights, so that a share of it is a share of s."""
    factors, whole = split_names(adapter.tensors)
    dora = any("lora_magnitude_vector" in names for names in factors.values())
    return adapter.config["peft_type"] == "LORA" and not whole and not dora


def split_names(tensors: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Sort an adapter's tensors.

    Returns:
        Module to the LoRA factors it has, and the name in the original to the adapter's name of
        tensors that were trained whole (`modules_to_save`, biases, a resized embedding).
    """
    factors: dict[str, set[str]] = {}
    whole: dict[str, str] = {}
    for name in tensors:
        leaf = next((leaf for leaf in FACTORS if name.endswith("." + leaf)), None)
        if leaf:
            factors.setdefault(name[: -len(leaf) - 1], set()).add(leaf)
        else:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = name
    return factors, whole


def locate(name: str, original: Mapping[str, TensorHeader]) -> str:
    """Return what the original's files call a tensor of the loaded model.

    Some checkpoints leave out the name of the body (`h.0...` for `transformer.h.0...`).
    """
    shorter = name.partition(".")[2]
    return shorter if name not in original and shorter in original else name


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """Tell whether an adapter's configuration asks for a module.

    The rules of peft 0.21, tuners/tuners_utils.py `check_target_module_exists`.
    """
    saved = config.get("modules_to_save") or ()
    if _named(config.get("exclude_modules"), module) or any(
        re.match(rf"(^|.*\.){name}($|\..*)", module) for name in saved
    ):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str) or module in (targets or ()) or not _named(targets, module):
        return _named(targets, module)
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _named(names: str | Iterable[str] | None, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def pattern_value(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """Look a module up in rank_pattern or alpha_pattern; peft 0.21 utils/other.py."""
    found = (
        value
        for pattern, value in (patterns or {}).items()
        if re.match(rf"(.*\.)?({pattern})$", module)
    )
    return next(found, otherwise)


def _check_factors(adapter: Adapter, module: str, names: set[str]) -> None:
    needed = (
        {"lora_embedding_A", "lora_embedding_B"}
        if names & {"lora_embedding_A", "lora_embedding_B"}
        else {"lora_A.weight", "lora_B.weight"}
    )
    if adapter.config.get("use_dora"):
        needed.add("lora_magnitude_vector")
    if lacking := needed - names:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: {module} lacks {some(sorted(lacking))}; the file is "
            "incomplete: train the adapter again"
        )
    rank = pattern_value(adapter.config.get("rank_pattern"), module, adapter.config["r"])
    first = next(name for name in needed if name.endswith(("lora_A.weight", "embedding_A")))
    found = adapter.tensors[f"{module}.{first}"].shape[0]
    if found != rank:
        raise ContractError(
            f"{adapter.folder}: {module}.{first} has rank {found}, {CONFIG_NAME} says {rank} (r or "
            "rank_pattern); the two files do not belong together"
        )


def _check_expected(
    adapter: Adapter, factors: Iterable[str], original: Mapping[str, TensorHeader]
) -> None:
    """Refuse an adapter that has nothing for a module its configuration asks for."""
    have = {locate(f"{name}.weight", original) for name in factors}
    prefixes = {
        f"{name.partition('.')[0]}." for name in factors if f"{name}.weight" not in original
    }
    missing = []
    for name, header in original.items():
        module = name.removesuffix(".weight")
        # Experts lie in single tensors in the file and in one in the model, which peft passes over.
        # Layers for predicting several tokens (`mtp`) are not part of the loaded model.
        if module == name or len(header.shape) != 2 or {"experts", "mtp"} & {*name.split(".")}:
            continue
        named = {module, *(prefix + module for prefix in prefixes)}
        if name not in have and any(is_target(adapter.config, item) for item in named):
            missing.append(module)
    if missing:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: holds nothing for {some(missing)}, which "
            f"{CONFIG_NAME} target_modules asks for; the file is incomplete: train the adapter "
            "again"
        )
    for name in adapter.config.get("modules_to_save") or ():
        if not any(f".{name}." in f".{tensor}" for tensor in adapter.tensors):
            raise ContractError(
                f"{adapter.folder / WEIGHTS_NAME}: holds nothing for modules_to_save={name!r}; the "
                "file is incomplete: train the adapter again"
            )


def _scale(config: Mapping[str, Any], module: str) -> float:
    rank = pattern_value(config.get("rank_pattern"), module, config["r"])
    alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _is_transposed(adapter: Adapter, module: str, original: Mapping[str, TensorHeader]) -> bool:
    """Tell whether the file holds W transposed, as GPT-2's Conv1D does.

    peft has one fan_in_fan_out for all modules, whatever each of them is.
    """
    outputs = adapter.tensors[f"{module}.lora_B.weight"].shape[0]
    inputs = adapter.tensors[f"{module}.lora_A.weight"].shape[1]
    header = original.get(locate(f"{module}.weight", original))
    if header is not None and inputs != outputs:
        return header.shape == (inputs, outputs)
    joint = [item.shape for name, item in original.items() if name.endswith("attn.c_attn.weight")]
    conv1d = any(shape[1] == 3 * shape[0] for shape in joint)
    return conv1d and module.rpartition(".")[2] in {"c_attn", "c_proj", "c_fc", "q_attn"}


def _check_whole(
    adapter: Adapter,
    factors: Mapping[str, set[str]],
    whole: set[str],
    original: Mapping[str, TensorHeader],
) -> None:
    """Refuse an adapter that lacks a tensor it was to train whole."""
    config = adapter.config
    targets = {locate(f"{module}.bias", original) for module in factors}
    saved = tuple(config.get("modules_to_save") or ())
    expected = {
        name
        for name in original
        if any(f".{item}." in f".{name}" for item in saved)
        or (name.endswith(".bias") and config.get("bias") == "all")
        or (name in targets and config.get("bias") == "lora_only")
    }
    missing = sorted(expected - whole)
    if config.get("lora_bias"):
        missing += [
            f"{m}.lora_B.bias" for m, names in factors.items() if "lora_B.bias" not in names
        ]
    if missing:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: lacks {some(missing)}, which {CONFIG_NAME} asks for "
            "(bias, lora_bias or modules_to_save); the file is incomplete: train the adapter again"
        )


def _low_rank(adapter: Adapter, module: str, names: set[str], transposed: bool) -> Update:
    embedding = "lora_embedding_A" in names
    a, b = (
        ("lora_embedding_A", "lora_embedding_B")
        if embedding
        else ("lora_A.weight", "lora_B.weight")
    )
    inputs = adapter.tensors[f"{module}.{a}"].shape[1]
    outputs = adapter.tensors[f"{module}.{b}"].shape[0]
    dora = "lora_magnitude_vector" in names

    def load() -> LowRank:
        left, right = adapter.load(f"{module}.{b}"), adapter.load(f"{module}.{a}")
        if transposed:
            left, right = right.T.contiguous(), left.T.contiguous()
        magnitude = adapter.load(f"{module}.lora_magnitude_vector").flatten() if dora else None
        scale = _scale(adapter.config, module)
        return LowRank(left, right, scale, magnitude, "columns" if transposed else "rows")

    def open_factors() -> Apply:
        low_rank = load()
        return lambda weight, rows: merge_low_rank(weight, low_rank, rows)

    return Update(
        shape=(inputs, outputs) if transposed else (outputs, inputs),
        open=open_factors,
        by_rows=not (dora and transposed),
        open_square=None if dora else lambda: square_of(load()),
    )


def _shift(adapter: Adapter, module: str) -> Update:
    """LoRA's own bias: b' = b + s b_B (peft's lora_bias)."""
    name = f"{module}.lora_B.bias"

    def open_shift() -> Apply:
        shift = adapter.load(name) * _scale(adapter.config, module)
        return lambda bias, rows: bias + shift[rows]

    return Update(adapter.tensors[name].shape, open_shift)


def _replacement(adapter: Adapter, name: str) -> Update:
    """A tensor that was trained whole."""

    def open_replacement() -> Apply:
        from safetensors import safe_open

        # By slices: the embedding of a large model alone would fill what the merge may use.
        file = safe_open(adapter.folder / WEIGHTS_NAME, framework="pt")
        tensor = file.get_slice(PREFIX + name)  # type: ignore[no-untyped-call]
        return lambda weight, rows: tensor[rows].float()

    return Update(adapter.tensors[name].shape, open_replacement)
