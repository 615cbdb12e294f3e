"""The proof of a merge: measured on held-out text against what was trained, and held to limits."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from requant.comparison.batches import Batch
from requant.config.merge import MergeLimits
from requant.execution.stage import Metrics, Reporter, empty_folder
from requant.merging.change import Change
from requant.merging.parity import Parity, check_parity, check_result, measure_parity, stored_in
from requant.merging.plan import MergePlan, write_plan
from requant.merging.rounding import check_rounding, measure_rounding


@dataclass(frozen=True)
class Merged:
    """A merged model that was written."""

    plan: MergePlan
    folder: Path
    changes: Mapping[str, Change]
    """What merging did to each of its tensors."""


@dataclass(frozen=True)
class Setting:
    """What merged models are proved against, and on what."""

    original: Path
    """The model that was merged into, as a folder that loads."""
    trained_on: Path
    batches: Callable[[Path], list[Batch]]
    """Encodes the held-out text with a model's tokenizer."""
    device: str
    limits: MergeLimits
    dtype: str | None
    """torch name of the floating dtype that is written; None keeps each tensor's own."""
    work: Path
    """Where models are written that only the proof needs."""
    reporter: Reporter | None = None


def prove(merged: Merged, wholes: Iterable[MergePlan], setting: Setting) -> Metrics:
    """Prove a merged model, or refuse it.

    Parity is proved on the result itself where adapters beside the base compute the same: whole
    adapters, shares of LoRA ones, weighted sums of them. Of anything else (ties, dare, a share of a
    DoRA) nothing unmerged is the twin; then each adapter, merged whole by the same code, is proved,
    and the result is held to the loss of what was trained and to what rounding did to it.

    Args:
        merged: The result.
        wholes: Plans that merge one adapter each, whole, into the same base; written where needed.
        setting: What against, and on what.

    Returns:
        The figures of `measure_parity`, of the adapter that was furthest off where there are
        several proofs; parity_of_result (1: of the result, 0: of adapters merged whole), then with
        result_loss_change (of the result over what was trained) and the rounding_* of the result
        against itself written in float32.

    Raises:
        ParityError: If a figure is over its limit.
    """
    if merged.plan.equivalent_adapters is not None:
        return {**_parity(merged, setting, published=True).metrics, "parity_of_result": 1.0}
    proofs: list[Parity] = []
    alone = setting.work / "alone"
    for whole in wholes:
        changes = write_plan(whole, empty_folder(alone), dtype=setting.dtype)
        proofs.append(_parity(Merged(whole, alone, changes), setting, published=False))
    worst = max(proofs, key=lambda parity: parity.metrics["parity_kl"])
    # One model at a time beside the result: a disk is as full as a night leaves it.
    unrounded = empty_folder(alone)
    write_plan(merged.plan, unrounded, dtype="float32")
    rounding, result = measure_rounding(
        unrounded,
        merged.folder,
        setting.original,
        setting.batches(merged.folder),
        setting.device,
        setting.reporter,
        vocabulary=_rows(merged.plan),
    )
    check_rounding(rounding, stored_in(merged.folder, merged.changes), setting.limits)
    # Where several were trained the result need only keep what the least of them won.
    least = min((parity.gain for parity in proofs), key=lambda gain: gain.won)
    gain = replace(least, left=tuple(loss for _, loss in result.losses))
    check_result(gain, setting.limits)
    return {
        **worst.metrics,
        **rounding.as_metrics(),
        "parity_of_result": 0.0,
        "result_loss_change": gain.lost,
    }


def _parity(merged: Merged, setting: Setting, *, published: bool) -> Parity:
    parity = measure_parity(
        merged=merged.folder,
        changes=merged.changes,
        original=setting.original,
        trained_on=setting.trained_on,
        adapters=merged.plan.equivalent_adapters or [],
        batches=setting.batches(merged.folder),
        device=setting.device,
        vocabulary=_rows(merged.plan),
        reporter=setting.reporter,
    )
    check_parity(parity, setting.limits, published=published)
    return parity


def _rows(plan: MergePlan) -> int | None:
    """Return the rows of the embedding, where the adapter brings another number."""
    rows: int | None = plan.vocabulary.config.get("vocab_size")
    return rows
