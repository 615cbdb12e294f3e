"""What a LoRA adapter does to each tensor of the original, by the files alone."""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

from requant.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, Adapter, locate, split_names
from requant.adapters.patterns import body_prefixes, is_target, pattern_value
from requant.errors import ContractError
from requant.merging.updates import Apply, LowRank, Update, chained, merge_low_rank, square_of
from requant.merging.whole_tensors import replacing_updates, with_token_rows
from requant.models.headers import TensorHeader
from requant.wording import few


def lora_updates(adapter: Adapter, original: Mapping[str, TensorHeader]) -> dict[str, Update]:
    """Say what a LoRA adapter does to each tensor of the original.

    LoRA, rsLoRA (alpha / sqrt(rank), arXiv:2312.03732), DoRA, of linear layers and embeddings, with
    patterns of rank and alpha, trained biases, fully trained modules, trained tokens and a resized
    vocabulary.

    Args:
        adapter: Of peft_type LORA.
        original: Tensor name to header, with the names as in its files.

    Raises:
        ContractError: Naming the tensors of the adapter that do not fit or are missing.
    """
    factors, _ = split_names(adapter.tensors)
    stored = replacing_updates(adapter, original)
    updates = dict(stored)
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
    _check_whole(adapter, factors, stored.keys(), original)
    return with_token_rows(adapter, updates, original)


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
            f"{adapter.folder / WEIGHTS_NAME}: {module} lacks {few(sorted(lacking))}; the file is "
            "incomplete: train the adapter again"
        )
    flat = [
        name
        for name in needed - {"lora_magnitude_vector"}
        if len(adapter.tensors[f"{module}.{name}"].shape) < 2
    ]
    if flat:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: {module}.{flat[0]} is no matrix; the file is "
            "damaged: train the adapter again"
        )
    if any(len(adapter.tensors[f"{module}.{name}"].shape) > 2 for name in needed):
        raise ContractError(
            f"{adapter.folder}: {module} is a convolution; requant merges linear layers and "
            "embeddings: train without it"
        )
    rank = pattern_value(adapter.config.get("rank_pattern"), module, adapter.config["r"])
    first = next(name for name in needed if name.endswith(("lora_A.weight", "embedding_A")))
    found = adapter.tensors[f"{module}.{first}"].shape[0]
    if found != rank:
        raise ContractError(
            f"{adapter.folder}: {module}.{first} has rank {found}, {CONFIG_NAME} says {rank} (r or "
            "rank_pattern); the two files do not belong together"
        )
    shapes = {name: adapter.tensors[f"{module}.{name}"].shape for name in names}
    second = next(name for name in names if name.endswith(("lora_B.weight", "embedding_B")))
    outputs = shapes[second][0]
    if shapes[second][1] != rank:
        raise ContractError(
            f"{adapter.folder}: {module}.{second} is {list(shapes[second])}, expected {rank} "
            "columns, its rank; the file is damaged: train the adapter again"
        )
    magnitude = shapes.get("lora_magnitude_vector")
    if magnitude is not None and not adapter.config.get("use_dora"):
        raise ContractError(
            f"{adapter.folder}: {module} has a magnitude and {CONFIG_NAME} says use_dora=false; "
            "the two files do not belong together"
        )
    if magnitude is not None and math.prod(magnitude) != outputs:
        raise ContractError(
            f"{adapter.folder}: {module}.lora_magnitude_vector is {list(magnitude)}, expected "
            f"{outputs} entries, one for each output; the file is damaged: train the adapter again"
        )


def _check_expected(
    adapter: Adapter, factors: Iterable[str], original: Mapping[str, TensorHeader]
) -> None:
    """Refuse an adapter that has nothing for a module its configuration asks for."""
    have = {locate(f"{name}.weight", original) for name in factors}
    prefixes = body_prefixes(adapter, factors, original)
    experts = any(".experts." in name for name in factors)
    missing = []
    for name, header in original.items():
        module = name.removesuffix(".weight")
        # Experts lie in single tensors in the file and in one in newer models, which peft passes
        # over; adapters of older ones have some of them, and then must have all.
        # Layers for predicting several tokens (`mtp`) are not part of the loaded model.
        parts = {*name.split(".")}
        passed = "mtp" in parts or ("experts" in parts and not experts)
        if module == name or len(header.shape) != 2 or passed:
            continue
        named = {module, *(prefix + module for prefix in prefixes)}
        if name not in have and any(is_target(adapter.config, item) for item in named):
            missing.append(module)
    if missing:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: holds nothing for {few(missing)}, which "
            f"{CONFIG_NAME} target_modules asks for; the file is incomplete: train the adapter "
            "again"
        )
    for name in adapter.config.get("modules_to_save") or ():
        if not any(f".{name}." in f".{tensor}" for tensor in adapter.tensors):
            raise ContractError(
                f"{adapter.folder / WEIGHTS_NAME}: holds nothing for modules_to_save={name!r}; the "
                "file is incomplete, or transformers loads the module under another name, as it "
                "does with experts, which requant cannot merge"
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
    whole: Set[str],
    original: Mapping[str, TensorHeader],
) -> None:
    """Refuse an adapter that lacks a tensor it was to train whole."""
    config = adapter.config
    targets = {locate(f"{module}.bias", original) for module in factors}
    saved = tuple(config.get("modules_to_save") or ())
    expected = {
        name
        for name, header in original.items()
        if any(f".{item}." in f".{name}" for item in saved)
        # GPT-2's files hold its attention mask as a `bias` of four dimensions.
        or (name.endswith(".bias") and config.get("bias") == "all" and len(header.shape) == 1)
        or (name in targets and config.get("bias") == "lora_only")
    }
    missing = sorted(expected - whole)
    if config.get("lora_bias"):
        missing += [
            f"{m}.lora_B.bias" for m, names in factors.items() if "lora_B.bias" not in names
        ]
    if missing:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: lacks {few(missing)}, which {CONFIG_NAME} asks for "
            "(bias, lora_bias or modules_to_save); the file is incomplete, or transformers loads "
            "these under other names, as it does with experts, which requant cannot merge"
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
