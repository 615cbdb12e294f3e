"""What rounding took from an update, judged by what it does on held-out text.

The norm of the rounding error says nothing of harm: it is spread over all directions, the update
lies in few. Used wherever float32 weights are stored in fewer bits: merge_fp16, continue_train.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from requant.comparison.batches import Batch
from requant.comparison.divergence import Fidelity, compare_log_probs, exceeds
from requant.comparison.folders import folder_log_probs
from requant.config.merge import MergeLimits
from requant.config.training import ContinueTrain
from requant.errors import ParityError
from requant.execution.progress import told
from requant.execution.stage import Metrics, Reporter
from requant.statistics import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

STANDARD_ERRORS = 2.0
"""How many of them a loss must lie over its limit: of few tokens it is known badly."""

NOTHING = 1e-7
"""Nats per token: a KL or a loss of sums in float32 is not known better."""


@dataclass(frozen=True)
class Rounding:
    """A rounded model beside the unrounded one, and both beside the model they were made from."""

    kl: float
    """KL(unrounded || rounded), nats per token."""
    update_kl: float
    """KL(unrounded || before), nats per token: what the update moves the model by."""
    loss: Estimate
    """Loss that rounding adds, nats per token, paired by sequence."""
    gain: Estimate
    """Loss before less loss unrounded, nats per token, paired by sequence."""

    @property
    def kl_share(self) -> float:
        """KL of rounding over that of the update; 0 where neither moves the model."""
        if self.update_kl <= NOTHING:
            return float("inf") if exceeds(self.kl, NOTHING) else 0.0
        # Summed in float32 a KL of nothing may come out just below zero.
        return max(self.kl, 0.0) / self.update_kl if self.kl == self.kl else self.kl

    def as_metrics(self) -> Metrics:
        """Flat figures for a stage's record."""
        return {
            "rounding_kl": self.kl,
            "rounding_kl_share": self.kl_share,
            "rounding_loss": self.loss.mean,
            "rounding_loss_error": self.loss.error,
            "update_kl": self.update_kl,
            "update_gain": self.gain.mean,
            "update_gain_error": self.gain.error,
        }


def rounding_of(rounded: Fidelity, before: Fidelity) -> Rounding:
    """Put together what was measured against one reference, the unrounded model."""
    gain = before.paired["loss_change"]
    return Rounding(rounded.kl, before.kl, rounded.paired["loss_change"], gain)


def measure_rounding(
    unrounded: Path,
    rounded: Path,
    before: Path,
    batches: list[Batch],
    device: str,
    reporter: Reporter | None = None,
    vocabulary: int | None = None,
) -> tuple[Rounding, Fidelity]:
    """Measure what storing `unrounded` as `rounded` did, in float32, one model in memory at a time.

    Args:
        unrounded: Model folder in float32.
        rounded: The same, as it was stored.
        before: The model that the update was added to.
        batches: What they read.
        device: cpu or cuda.
        reporter: Hears how far it is.
        vocabulary: Rows `before` is brought to, where the update needs another number.

    Returns:
        What rounding did, and `rounded` against `unrounded`.
    """

    def run(folder: Path, what: str) -> "Iterable[torch.Tensor]":
        heard = told(batches, reporter, f"texts of {what}")
        return folder_log_probs(folder, heard, device, exact=True, vocabulary=vocabulary)

    reference = list(run(unrounded, "the model in float32"))
    stored = compare_log_probs(reference, run(rounded, "what was saved"), batches)
    found = compare_log_probs(reference, run(before, "the model before"), batches)
    return rounding_of(stored, found), stored


def limits_missed(rounding: Rounding, limits: MergeLimits | ContinueTrain) -> list[str]:
    """Name the limits that rounding is over."""
    allowed = limits.rounding_max_loss_share * abs(rounding.gain.mean)
    # The error of a single sequence is unknown; then the KL alone judges.
    sure = STANDARD_ERRORS * rounding.loss.error
    over = {
        "rounding_max_kl_share": exceeds(rounding.kl_share, limits.rounding_max_kl_share),
        "rounding_max_loss_share": rounding.loss.mean - sure > max(allowed, NOTHING),
    }
    return [name for name, missed in over.items() if missed]


def describe_rounding(rounding: Rounding, dtype: str) -> str:
    """Say what storing an update in a dtype did to it."""
    return (
        f"{dtype} is too coarse for the update: rounding moves the model by "
        f"{rounding.kl:.3g} nats per token where the update moves it by {rounding.update_kl:.3g} "
        f"({rounding.kl_share:.1%} of it), and costs {rounding.loss.mean:.3g} ± "
        f"{rounding.loss.error:.2g} nats of the loss where the update gains "
        f"{rounding.gain.mean:.3g}"
    )


def check_rounding(rounding: Rounding, dtype: str, limits: MergeLimits | ContinueTrain) -> None:
    """Refuse weights that rounding robbed of what was learned.

    Args:
        rounding: What it did.
        dtype: torch name of what was written.
        limits: Of the stage.

    Raises:
        ParityError: With the figures, the limit and what helps.
    """
    missed = limits_missed(rounding, limits)
    if not missed:
        return
    stage = "merge_fp16" if isinstance(limits, MergeLimits) else "continue_train"
    over = ", ".join(f"{stage}.{name}={getattr(limits, name):g}" for name in missed)
    raise ParityError(
        f"{stage}: {describe_rounding(rounding, dtype)}; over {over}. {_way_out(stage, dtype)}"
    )


def _way_out(stage: str, dtype: str) -> str:
    finer = [f"{stage}.dtype=float16 (steps an eighth of bfloat16's)"] if "b" in dtype else []
    finer += [f"{stage}.dtype=float32 (a master that rounds nothing)"] if "32" not in dtype else []
    more = (
        ["merge_fp16.past_nights (small updates add up before they are rounded)"]
        if stage == "merge_fp16"
        else []
    )
    larger = "a larger update: train longer or with a higher learning_rate"
    again = " (the training is repeated then)" if stage == "continue_train" else ""
    return f"Use {', '.join([*finer, *more])}, or {larger}{again}"
