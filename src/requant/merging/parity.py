"""Whether a merged model is what was trained: two distances on held-out text, and limits."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.config.sections import MergeFp16
from requant.contract import some
from requant.errors import ParityError
from requant.fidelity import Batch, compare_log_probs, exceeds
from requant.merging.outputs import watch_modules
from requant.merging.stream import Change
from requant.parity import folder_log_probs
from requant.stage import Metrics

if TYPE_CHECKING:
    import torch


PROVABLE = 5
"""Times the arithmetic's own noise that an update must be for its faults to stand out."""
ROUNDING_MARGIN = 2
"""Times its rounding error over its update that a tensor may be off on real inputs: the ratio holds
for any direction on average, and inputs have directions of their own."""


@dataclass(frozen=True)
class Parity:
    """A merged model beside what it stands for."""

    metrics: Metrics
    modules: Mapping[str, float]
    """Of each merged tensor, how far its module's output is off beyond rounding, as a share of what
    the adapter changes in it."""
    rounding_ratio: float
    """Of the merged model, all tensors together."""


def measure_parity(
    *,
    merged: Path,
    changes: Mapping[str, Change],
    original: Path,
    trained_on: Path,
    adapters: Sequence[tuple[Path, float]],
    batches: list[Batch],
    device: str,
    vocabulary: int | None = None,
) -> Parity:
    """Measure a merged model on held-out text, in float32.

    Args:
        merged: What is measured.
        changes: What merging did to each of its tensors.
        original: The model that was merged into.
        trained_on: The model the adapters were trained on.
        adapters: What was merged, `MergePlan.beside`.
        batches: What the models read.
        device: cpu or cuda.
        vocabulary: Rows of the embedding, where the adapter brings another number.

    Returns:
        parity_*: merged against original+adapter, unmerged, and parity_module_error, the worst
        module's (a missed module or a wrong scale shows there); trained_*: merged against
        trained_on+adapter (what quantization costs the hand-over); update_kl: original+adapter
        against original (what there was to merge, nats per token).
    """

    def run(
        folder: Path,
        adapters: Sequence[tuple[Path, float]] = (),
        watch: Callable[[Any], None] = lambda model: None,
    ) -> "Iterator[torch.Tensor]":
        return folder_log_probs(
            folder,
            batches,
            device,
            adapters=adapters,
            exact=True,
            vocabulary=vocabulary,
            watch=watch,
        )

    errors: dict[str, float] = {}
    reference = list(run(original, adapters, watch_modules(merged, errors)))
    parity = compare_log_probs(reference, run(merged), batches)
    update = compare_log_probs(reference, run(original), batches)
    trained = parity
    if trained_on != original:
        # Two such lists at once are what fills the memory.
        del reference
        reference = list(run(trained_on, adapters))
        trained = compare_log_probs(reference, run(merged), batches)
    modules = {
        name: max(0.0, error - ROUNDING_MARGIN * changes.get(name, Change()).rounding_ratio)
        for name, error in errors.items()
    }
    metrics = {
        **parity.as_metrics("parity_"),
        "parity_module_error": max(modules.values(), default=0.0),
        **trained.as_metrics("trained_"),
        "trained_loss_change": trained.loss_change,
        "update_kl": update.kl,
        "parity_tokens": float(parity.tokens),
    }
    return Parity(metrics, modules, sum(changes.values(), start=Change()).rounding_ratio)


def check_parity(parity: Parity, section: MergeFp16) -> None:
    """Refuse a merge that does not reproduce what was trained.

    Args:
        parity: From `measure_parity`.
        section: Limits.

    Raises:
        ParityError: With both distances, the limit, the likely cause and the way out.
    """
    metrics = parity.metrics
    both = (
        f"merged against original+adapter {metrics['parity_kl']:.3g} nats per token, against the "
        f"quantized base+adapter that was trained {metrics['trained_kl']:.3g} (agreement "
        f"{metrics['trained_agreement']:.3g}, loss {metrics['trained_loss_change']:+.3g}); the "
        f"adapter itself moves the model by {metrics['update_kl']:.3g}"
    )
    if math.isnan(metrics["update_kl"]):
        raise ParityError(f"merge_fp16: the adapter's outputs are not finite: {both}; retrain it")
    if metrics["update_kl"] < PROVABLE * section.parity_max_kl:
        raise ParityError(
            f"merge_fp16: the adapter moves the model by {metrics['update_kl']:.3g} nats per "
            f"token, too little to tell a right merge from a wrong one (at least {PROVABLE} times "
            f"merge_fp16.parity_max_kl={section.parity_max_kl:g}); train longer or with a higher "
            "learning rate, or lower that limit"
        )
    over = {
        name: error
        for name, error in parity.modules.items()
        if exceeds(error, section.parity_max_module)
    }
    if over:
        raise ParityError(
            f"merge_fp16: {some(over)}: the output is off by up to {max(over.values()):.3g} of "
            f"what the adapter changes in it, limit merge_fp16.parity_max_module="
            f"{section.parity_max_module:g} beyond rounding; 1 is a module that was missed, 0.5 "
            f"half its scale. {both}; check that adapter and original belong together"
        )
    noise = (ROUNDING_MARGIN * parity.rounding_ratio) ** 2
    limit = section.parity_max_kl + (section.parity_max_share + noise) * metrics["update_kl"]
    if exceeds(metrics["parity_kl"], limit):
        raise ParityError(
            f"merge_fp16: the merge does not do what the adapter does: {both}. The first is over "
            f"{limit:.3g} (merge_fp16.parity_max_kl={section.parity_max_kl:g} + parity_max_share="
            f"{section.parity_max_share:g} of the adapter's, and its rounding, "
            f"{parity.rounding_ratio:.3g} of the update); likely a missed module or a wrong "
            "scale: check that adapter and original belong together. Where the model routes tokens "
            "(experts) rounding alone may do it: compare with dtype float32"
        )
    kept = {
        "trained_max_kl": metrics["trained_kl"] <= section.trained_max_kl,
        "trained_min_agreement": metrics["trained_agreement"] >= section.trained_min_agreement,
        "trained_max_loss": metrics["trained_loss_change"] <= section.trained_max_loss,
    }
    over_limit = [
        f"merge_fp16.{name}={getattr(section, name):g}" for name in kept if not kept[name]
    ]
    if over_limit:
        raise ParityError(
            f"merge_fp16: the merged model is not the one that was trained: {both}. Missed: "
            f"{', '.join(over_limit)}; likely the quantized base is far from the original: use a "
            "finer quantize_base.method, or merge_fp16.base=dequantized"
        )


def check_rounding(rounding_ratio: float, section: MergeFp16) -> None:
    """Refuse a merge whose update the dtype cannot hold.

    Raises:
        ParityError: With the ratio, its limit and the way out.
    """
    if exceeds(rounding_ratio, section.max_rounding_ratio):
        raise ParityError(
            f"merge_fp16: rounding takes {rounding_ratio:.3g} of the update's norm, limit "
            f"merge_fp16.max_rounding_ratio={section.max_rounding_ratio:g}; the update is too "
            "small for the dtype: train longer, or use a finer one (merge_fp16.dtype=float16; "
            "requant merge --dtype float32)"
        )


def check_result(loss_change: float, section: MergeFp16) -> None:
    """Refuse a combination of adapters that predicts the held-out text worse than tonight's did.

    Args:
        loss_change: Of the result over trained_on+tonight's adapter, nats per token.
        section: Limits.

    Raises:
        ParityError: With the change, its limit and the way out.
    """
    if exceeds(loss_change, section.trained_max_loss):
        raise ParityError(
            f"merge_fp16: what was combined loses {loss_change:.3g} nats per token against what "
            f"was trained, limit merge_fp16.trained_max_loss={section.trained_max_loss:g}; give "
            "tonight's adapter a larger weight, or another combine or scales"
        )
