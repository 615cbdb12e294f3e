"""Merge adapters into a model folder: plan with the headers alone, then write."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from requant.adapters.folder import Adapter, is_additive, read_adapter
from requant.adapters.patterns import check_adapter_patterns
from requant.combination import Combination
from requant.errors import ContractError, ParityError
from requant.merging.change import Change
from requant.merging.combine import BY_ROWS, MEANS, combined_updates
from requant.merging.companions import write_companions
from requant.merging.dequantize import dequantized_updates
from requant.merging.lora import lora_updates
from requant.merging.stream import write_merged
from requant.merging.updates import Update, interpolated
from requant.merging.vocabulary import Vocabulary, is_vocabulary, settle_vocabulary
from requant.merging.whole_tensors import replacing_updates, with_token_rows
from requant.models.config import read_model_config
from requant.models.headers import TORCH_NAMES, TensorHeader, read_headers
from requant.wording import few


@dataclass(frozen=True)
class Mix:
    """How several adapters become one update; see `requant.merging.combine`."""

    method: Combination = "cat"
    weights: Sequence[float] = ()
    """Weight of each adapter; empty for equal shares of one, or for 1 each where the method takes
    means (ties, dare_ties)."""
    density: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class MergePlan:
    """A merge that has passed every check that needs no tensor."""

    original: Path
    updates: Mapping[str, Update]
    vocabulary: Vocabulary
    equivalent_adapters: Sequence[tuple[Path, float]] | None = None
    """Adapters and weights which, unmerged beside the model merged into, compute what the merged
    one does; None where none do (a share of a DoRA, ties)."""
    additive: bool = False
    """A share of the update is that share of each of them."""


def plan_merge(
    original: Path, adapters: Sequence[Path], *, untie: bool = False, mix: Mix | None = None
) -> MergePlan:
    """Check that adapters fit a model, and say what merging them will do.

    Args:
        original: Model folder in 16 or 32 bit.
        adapters: peft folders, each trained on (a quantization of) the original.
        untie: Whether a tied output layer may become one of its own.
        mix: Of several adapters.

    Raises:
        ContractError: Naming the tensors: of a type that cannot be merged, missing in one of the
            two, of another shape, or of another vocabulary.
    """
    headers, config = read_headers(original), read_model_config(original)
    if "text_config" in config:
        raise ContractError(
            f"{original}: is a model of several modalities (text_config in config.json); requant "
            "merges language models"
        )
    read = [read_adapter(folder) for folder in adapters]
    for adapter in read:
        check_adapter_patterns(adapter, headers)
    fitted = [_fit(original, adapter, headers, config, untie) for adapter in read]
    additive = all(map(is_additive, read))
    mix = mix or Mix()
    equal = 1.0 if mix.method in MEANS else 1 / len(fitted)
    weights = mix.weights or [equal] * len(fitted)
    if len(weights) != len(fitted):
        raise ContractError(f"{len(weights)} weights for {len(fitted)} adapters; give one for each")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ContractError(f"weights {list(weights)}: give finite numbers that are not all zero")
    if len(fitted) == 1 and mix.method in BY_ROWS:
        updates, vocabulary = fitted[0]
        plan = MergePlan(original, updates, vocabulary, [(adapters[0], 1.0)], additive)
        return scaled(plan, weights[0])
    for folder, (_, vocabulary) in zip(adapters, fitted, strict=True):
        if vocabulary != Vocabulary():
            raise ContractError(
                f"{folder}: changes the vocabulary or unties the output layer, which cannot be "
                "combined with other adapters; merge it alone"
            )
    updates = combined_updates(
        [updates for updates, _ in fitted], mix.method, weights, density=mix.density, seed=mix.seed
    )
    additive = additive and mix.method in BY_ROWS
    equivalent = list(zip(adapters, weights, strict=True)) if additive else None
    return MergePlan(original, updates, Vocabulary(), equivalent, additive)


def _fit(
    original: Path,
    adapter: Adapter,
    headers: Mapping[str, TensorHeader],
    config: Mapping[str, Any],
    untie: bool,
) -> tuple[dict[str, Update], Vocabulary]:
    updates = _updates(adapter, original, _loaded(headers, config))
    if not updates:
        raise ContractError(f"{adapter.folder}: holds no tensor that changes the model")
    updates, vocabulary = settle_vocabulary(
        adapter, updates, original, headers, config, untie=untie
    )
    _check_shapes(adapter, updates, headers, vocabulary.added)
    return updates, vocabulary


def _loaded(
    headers: Mapping[str, TensorHeader], config: Mapping[str, Any]
) -> dict[str, TensorHeader]:
    """Leave out layers past the last one, which some files hold to predict several tokens with."""
    layers = config.get("num_hidden_layers", math.inf)
    return {
        name: header
        for name, header in headers.items()
        if not (found := re.search(r"\.layers\.(\d+)\.", f".{name}")) or int(found[1]) < layers
    }


def _updates(
    adapter: Adapter, original: Path, headers: Mapping[str, TensorHeader]
) -> dict[str, Update]:
    if adapter.config["peft_type"] == "LORA":
        return lora_updates(adapter, headers)
    if adapter.config["peft_type"] == "TRAINABLE_TOKENS":
        return with_token_rows(adapter, replacing_updates(adapter, headers), headers)
    # Imports peft and transformers, which those need not.
    from requant.merging.tuners import tuner_updates

    return tuner_updates(adapter, original, headers)


def _check_shapes(
    adapter: Adapter,
    updates: Mapping[str, Update],
    headers: Mapping[str, TensorHeader],
    added: Mapping[str, str],
) -> None:
    known = headers.keys() | added.keys()
    if missing := sorted(updates.keys() - known):
        raise ContractError(
            f"{adapter.folder}: {len(missing)} of its {len(updates)} tensors are not in the "
            f"original: {few(missing)}; it was trained on another architecture"
        )
    dtypes = {name: headers[added.get(name, name)].dtype for name in updates}
    if odd := [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in TORCH_NAMES]:
        raise ContractError(
            f"{adapter.folder}: changes {few(odd)}, which cannot be merged into as they are "
            f"stored; expected one of {', '.join(TORCH_NAMES)}"
        )
    wrong = []
    for name, update in updates.items():
        shape = headers[added.get(name, name)].shape
        free = 1 if is_vocabulary(name) else 0
        if len(shape) != len(update.shape) or update.shape[free:] != shape[free:]:
            wrong.append(f"{name} ({list(shape)} in the original, {list(update.shape)} here)")
    if wrong:
        raise ContractError(
            f"{adapter.folder}: {len(wrong)} of its {len(updates)} tensors have another shape: "
            f"{few(wrong)}; it was trained on another base"
        )


def scaled(plan: MergePlan, scale: float) -> MergePlan:
    """Merge a share of the update alone: W + scale (W' - W).

    Raises:
        ContractError: If the vocabulary was resized: new rows have nothing to lie between.
    """
    if scale != 1 and "vocab_size" in plan.vocabulary.config:
        raise ContractError(
            f"scale {scale:g}: the adapter brings new rows of the vocabulary, which cannot be "
            "merged in part; use 1"
        )
    if scale == 1:
        return plan
    updates = {name: interpolated(update, scale) for name, update in plan.updates.items()}
    equivalent = None
    if plan.equivalent_adapters is not None and plan.additive:
        equivalent = [(folder, scale * weight) for folder, weight in plan.equivalent_adapters]
    return replace(plan, updates=updates, equivalent_adapters=equivalent)


def onto_dequantized(plan: MergePlan, quantized: Path) -> MergePlan:
    """Merge into what quantization left of the original, which is what the adapter was trained on.

    Exactly the modules that were quantized are round-tripped. A scaled plan stays scaled: its share
    is added to the round-tripped weights.

    Args:
        plan: Onto the original.
        quantized: Model folder the adapter was trained on.
    """
    dequantized = dequantized_updates(quantized, read_headers(plan.original))
    merged = {
        name: replace(update, open_start=dequantized[name].open) if name in dequantized else update
        for name, update in plan.updates.items()
    }
    unadapted = {
        name: Update(
            start.shape,
            lambda: lambda weight, rows: weight,
            open_start=start.open,
            adapted=False,
        )
        for name, start in dequantized.items()
    }
    return replace(plan, updates={**unadapted, **merged})


def write_plan(
    plan: MergePlan,
    out: Path,
    *,
    dtype: str | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Change]:
    """Write the merged model; config.json comes last, so that half a model does not load.

    Args:
        plan: From `plan_merge`.
        out: Existing folder.
        dtype: torch name of the floating dtype to write; None keeps the original's.
        on_shard: Told of (shards written, shards) after each one.

    Returns:
        Updated tensor to what changed in it.

    Raises:
        ParityError: If a merged weight is not finite, or the merged model is the original.
    """
    vocabulary = plan.vocabulary
    changes = write_merged(
        plan.original, plan.updates, out, dtype=dtype, added=vocabulary.added, on_shard=on_shard
    )
    moved = any(change.update for change in changes.values())
    if not moved or not any(change.changed for change in changes.values()):
        cause, finer = (
            ("rounding took all of the update", "merge with a finer dtype (float16, float32), ")
            if moved
            else ("the update is zero everywhere", "")
        )
        raise ParityError(
            f"merge_fp16: the merged weights are those merged into: {cause}; {finer}train longer "
            "or with a higher learning rate"
        )
    fields = {**vocabulary.config, **({"dtype": dtype} if dtype else {})}
    write_companions(plan.original, out, fields, vocabulary.tokenizer)
    return changes


def write_dequantized(plan: MergePlan, quantized: Path, out: Path) -> None:
    """Write what quantization left of the original, in float32, as a model that loads."""
    unadapted = onto_dequantized(replace(plan, updates={}, vocabulary=Vocabulary()), quantized)
    write_merged(unadapted.original, unadapted.updates, out, dtype="float32")
    write_companions(unadapted.original, out, {"dtype": "float32"})


def totals(changes: Mapping[str, Change]) -> dict[str, float]:
    """Flat figures of a merge: counts, and ratios over all merged tensors together."""
    whole = sum(changes.values(), start=Change())
    return {
        "merged_tensors": float(sum(change.update > 0 for change in changes.values())),
        "rounding_ratio": whole.rounding_ratio,
        "kept_share": whole.kept_share,
        "changed_share": whole.changed_share,
    }


def per_tensor(changes: Mapping[str, Change]) -> list[dict[str, Any]]:
    """A row for each merged tensor, for the report."""
    return [
        {
            "tensor": name,
            "update_norm": change.update**0.5,
            "rounding_ratio": change.rounding_ratio,
            "kept_share": change.kept_share,
            "changed_share": change.changed_share,
        }
        for name, change in sorted(changes.items())
    ]
