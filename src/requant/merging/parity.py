"""Whether a merged model is what was trained: two distances on held-out text, and limits."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from requant.config.sections import MergeFp16
from requant.errors import ParityError
from requant.fidelity import Batch, compare_log_probs, exceeds
from requant.parity import folder_log_probs
from requant.stage import Metrics

if TYPE_CHECKING:
    import torch


PROVABLE = 5
"""Times the arithmetic's own noise that an update must be for its faults to stand out."""


def measure_parity(
    *,
    merged: Path,
    original: Path,
    trained_on: Path,
    adapters: Sequence[tuple[Path, float]],
    batches: list[Batch],
    device: str,
    vocabulary: int | None = None,
) -> Metrics:
    """Measure a merged model on held-out text, in float32.

    Args:
        merged: What is measured.
        original: The model that was merged into.
        trained_on: The model the adapters were trained on.
        adapters: What was merged, `MergePlan.beside`.
        batches: What both models read.
        device: cpu or cuda.
        vocabulary: Rows of the embedding, where the adapter brings another number.

    Returns:
        parity_*: merged against original+adapter, unmerged (a wrong scale or a missed module shows
        here); trained_*: merged against trained_on+adapter (what quantization costs the hand-over);
        update_kl: original+adapter against original (what there was to merge, nats per token).
    """

    def run(folder: Path, adapters: Sequence[tuple[Path, float]] = ()) -> "Iterator[torch.Tensor]":
        return folder_log_probs(
            folder, batches, device, adapters=adapters, exact=True, vocabulary=vocabulary
        )

    reference = list(run(original, adapters))
    parity = compare_log_probs(reference, run(merged), batches)
    update = compare_log_probs(reference, run(original), batches)
    trained = parity
    if trained_on != original:
        reference = list(run(trained_on, adapters))
        trained = compare_log_probs(reference, run(merged), batches)
    return {
        **parity.as_metrics("parity_"),
        **trained.as_metrics("trained_"),
        "trained_loss_change": trained.loss_change,
        "update_kl": update.kl,
        "parity_tokens": float(parity.tokens),
    }


def check_parity(metrics: Metrics, section: MergeFp16) -> None:
    """Refuse a merge that does not reproduce what was trained.

    Args:
        metrics: From `measure_parity`, and the merge's rounding_ratio.
        section: Limits.

    Raises:
        ParityError: With both distances, the limit, the likely cause and the way out.
    """
    both = (
        f"merged against original+adapter {metrics['parity_kl']:.3g} nats per token, against the "
        f"quantized base+adapter that was trained {metrics['trained_kl']:.3g} (agreement "
        f"{metrics['trained_agreement']:.3g}, loss {metrics['trained_loss_change']:+.3g}); the "
        f"adapter itself moves the model by {metrics['update_kl']:.3g}"
    )
    if not metrics["update_kl"] >= PROVABLE * section.parity_max_kl:
        raise ParityError(
            f"merge_fp16: the adapter moves the model by {metrics['update_kl']:.3g} nats per "
            f"token, too little to tell a right merge from a wrong one (at least {PROVABLE} times "
            f"merge_fp16.parity_max_kl={section.parity_max_kl:g}); train longer or with a higher "
            "learning rate, or lower that limit"
        )
    limit = section.parity_max_kl + section.parity_max_share * metrics["update_kl"]
    if exceeds(metrics["parity_kl"], limit):
        raise ParityError(
            f"merge_fp16: the merge does not do what the adapter does: {both}. The first is over "
            f"{limit:.3g} (merge_fp16.parity_max_kl={section.parity_max_kl:g} + parity_max_share="
            f"{section.parity_max_share:g} of the adapter's); likely a missed module or a wrong "
            "scale: check that adapter and original belong together"
        )
    kept = {
        "trained_max_kl": metrics["trained_kl"] <= section.trained_max_kl,
        "trained_min_agreement": metrics["trained_agreement"] >= section.trained_min_agreement,
        "trained_max_loss": metrics["trained_loss_change"] <= section.trained_max_loss,
    }
    over = [f"merge_fp16.{name}={getattr(section, name):g}" for name in kept if not kept[name]]
    if over:
        raise ParityError(
            f"merge_fp16: the merged model is not the one that was trained: {both}. Missed: "
            f"{', '.join(over)}; likely the quantized base is far from the original: use a finer "
            "quantize_base.method, or merge_fp16.base=dequantized"
        )
    if exceeds(metrics["rounding_ratio"], section.max_rounding_ratio):
        raise ParityError(
            f"merge_fp16: rounding takes {metrics['rounding_ratio']:.3g} of the update's norm, "
            f"limit merge_fp16.max_rounding_ratio={section.max_rounding_ratio:g}; the update is "
            "too small for the dtype: train longer, or set merge_fp16.dtype=float16"
        )
