"""merge_fp16: the adapter into the retained 16-bit original."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from requant.canonical import canonical_json
from requant.comparison.batches import Batch, batches_for, old_batches
from requant.comparison.divergence import divergence_words
from requant.comparison.folders import folder_loss
from requant.config.merge import MergeFp16
from requant.data.artifact import HELDOUT
from requant.errors import ContractError, ParityError
from requant.execution.past_nights import ADAPTERS, STACKED, nights_ago
from requant.execution.stage import Metrics, Stage, StageContext, empty_folder
from requant.merging import (
    MergePlan,
    Mix,
    onto_dequantized,
    per_tensor,
    plan_merge,
    scaled,
    totals,
    write_dequantized,
    write_plan,
)
from requant.merging.change import Change
from requant.merging.proof import Merged, Setting, prove
from requant.models.folder import MERGE_NAME
from requant.models.provenance import check_provenance, read_provenance, weights_digest

Base = Literal["original", "dequantized"]


@dataclass(frozen=True)
class Variant:
    """One merged model that can be built."""

    base: Base
    scale: float
    adapters: Literal["tonight", "all"]

    def __str__(self) -> str:
        return f"{self.base}-{self.scale:g}"


def execute(
    section: MergeFp16,
    context: StageContext,
    *,
    original: Path,
    trained_on: Path,
    adapter: Path,
    data: Path,
    **past: Path,
) -> Metrics:
    """Merge, measure the merge against the models it stands for, and keep the best where several.

    Args:
        section: What to merge into, what to try, and limits.
        context: Of the stage.
        original: The retained 16-bit model.
        trained_on: The model the adapter was trained on; the original itself when unquantized.
        adapter: Tonight's peft folder.
        data: Dataset artifact; `heldout.jsonl` and the old text's task are read.
        **past: Adapters of past nights that are combined with tonight's (past_1 is last night's),
            and those that tonight's was trained on top of (stacked_1 is the newest).

    Returns:
        merged_tensors, rounding_ratio, kept_share, changed_share; the figures of `prove`, which
        is given tonight's adapter whole; of each model that was tried loss_new/<base>-<scale> and
        loss_old/..., chosen_scale, chosen_dequantized.

    Raises:
        ContractError: If an adapter does not fit the original, or was trained on another one.
        ParityError: If a weight is not finite, or a figure is over its limit.
    """
    for folder in (adapter, *past.values()):
        _check_belongs(folder, original, trained_on)
    stack = [adapter, *_newest_first(past, STACKED)]
    newest_first = [adapter, *_newest_first(past, ADAPTERS)]
    summed = Mix("cat", (1.0,) * len(stack), section.density, context.seed)
    plans = {
        "tonight": plan_merge(original, stack, mix=summed)
        if len(stack) > 1
        else plan_merge(original, stack, untie=section.untie)
    }
    mixed = len(newest_first) > 1
    if mixed:
        weights = _weights(section.weights, len(newest_first))
        mix = Mix(section.combine, weights, section.density, context.seed)
        plans["all"] = plan_merge(original, newest_first, mix=mix)
    bases: tuple[Base, ...] = (
        ("original", "dequantized") if section.base == "measured" else (section.base,)
    )
    variants = [
        Variant(base, scale, "all" if mixed else "tonight")
        for base, scale in product(bases, section.scales)
    ]

    stored = None if section.dtype == "original" else section.dtype

    def plan_of(variant: Variant) -> MergePlan:
        plan = scaled(plans[variant.adapters], variant.scale)
        return onto_dequantized(plan, trained_on) if variant.base == "dequantized" else plan

    def build(variant: Variant, out: Path) -> Mapping[str, Change]:
        return _build(plan_of(variant), out, stored, context)

    def batches_of(model: Path) -> list[Batch]:
        return batches_for(model, data / HELDOUT, section.parity_rows)

    chosen = variants[0]
    losses: Metrics = {}
    if len(variants) > 1:
        chosen, losses = _choose(variants, build, section, context, data)
    context.reporter.message("merging")
    changes = build(chosen, context.out)
    metrics = losses | totals(changes)
    context.reporter.message("measuring parity")
    setting = Setting(
        original=_reference(chosen.base, plans["tonight"], trained_on, context.work),
        trained_on=trained_on,
        batches=batches_of,
        device=context.device,
        limits=section.limits,
        dtype=stored,
        work=context.work,
        reporter=context.reporter,
    )
    whole = plan_of(Variant(chosen.base, 1.0, "tonight"))
    return metrics | prove(Merged(plan_of(chosen), context.out, changes), [whole], setting)


def _check_belongs(adapter: Path, original: Path, trained_on: Path) -> None:
    if not read_provenance(adapter):
        raise ContractError(
            f"{adapter}: does not record which model it was trained on; train it with "
            "train_adapter, or merge it with `requant merge`"
        )
    check_provenance(
        adapter, original=weights_digest(original), trained_on=weights_digest(trained_on)
    )


def _newest_first(past: Mapping[str, Path], kind: str) -> list[Path]:
    ages = {nights_ago(kind, role): folder for role, folder in past.items()}
    return [ages[age] for age in sorted(ages) if age]


def _weights(weights: Sequence[float], adapters: int) -> tuple[float, ...]:
    """Fit the weights to the adapters there are; in the first nights they are fewer."""
    given = weights[:adapters]
    return tuple(weight * sum(weights) / sum(given) for weight in given)


def _build(
    plan: MergePlan, out: Path, dtype: str | None, context: StageContext
) -> Mapping[str, Change]:
    changes = write_plan(
        plan,
        out,
        dtype=dtype,
        on_shard=lambda done, total: context.reporter.progress(done, total, "shards"),
    )
    (out / MERGE_NAME).write_bytes(canonical_json(per_tensor(changes)))
    return changes


def _reference(base: Base, plan: MergePlan, trained_on: Path, work: Path) -> Path:
    """The model without the adapter that the merge started from, as a folder that loads."""
    if base == "original":
        return plan.original
    out = empty_folder(work / "reference")
    write_dequantized(plan, trained_on, out)
    return out


def _choose(
    variants: Sequence[Variant],
    build: Callable[[Variant, Path], Mapping[str, Change]],
    section: MergeFp16,
    context: StageContext,
    data: Path,
) -> tuple[Variant, Metrics]:
    """Build each model, measure it on held-out new and old text, and name the best one.

    The best has the lowest loss_new + old_weight * loss_old, nats per token.
    """
    losses: Metrics = {}
    scores = {}
    for variant in variants:
        folder = empty_folder(context.work / str(variant))
        build(variant, folder)
        new, old = (
            folder_loss(folder, batches, context.device, context.reporter)
            for batches in (
                batches_for(folder, data / HELDOUT, section.parity_rows),
                old_batches(folder, data, section.parity_rows),
            )
        )
        losses |= {f"loss_new/{variant}": new, f"loss_old/{variant}": old}
        scores[variant] = new + section.old_weight * old
        shutil.rmtree(folder)
        context.reporter.message(f"{variant}: loss {new:.4g} on new text, {old:.4g} on old")
    if not all(map(math.isfinite, scores.values())):
        raise ParityError(f"merge_fp16: a loss is not finite: {losses}; look at the training loss")
    chosen = min(scores, key=lambda variant: scores[variant])
    context.reporter.message(f"keeping {chosen}")
    return chosen, {
        **losses,
        "chosen_scale": chosen.scale,
        "chosen_dequantized": float(chosen.base == "dequantized"),
    }


STAGE = Stage(
    name="merge_fp16",
    version=4,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "peft", "safetensors", "bitsandbytes"),
    execute=execute,
    artifact="merged",
    headline=(divergence_words("trained_"),),
    data_use="heldout",
)
