"""How far a quantized model is from the one it was made of, by readers that did not write it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from requant.comparison.batches import Batch
from requant.comparison.divergence import Fidelity, compare_log_probs, sequence_losses
from requant.comparison.folders import folder_log_probs, size_ratio
from requant.execution.progress import told
from requant.execution.stage import Metrics, Reporter
from requant.quantization.dequantize import QuantizedFolder, read_quantized
from requant.quantization.eora import correction_bits
from requant.quantization.kernel_check import check_kernel, quantized_layers
from requant.quantization.quantizable import Unquantized, unquantized
from requant.quantization.round_to_nearest import round_layers
from requant.quantization.weight_errors import WeightErrors, weight_errors
from requant.statistics import Gain, ratio_estimate

NOISE = 1e-6
"""Nats per token that float32 makes of two equal models."""


@dataclass(frozen=True)
class Quantization:
    """What was measured of a quantized model."""

    outputs: Fidelity
    """Against the model it was made of, on the same text."""
    nearest: Fidelity | None
    """Of the same grid by plain rounding, where it was asked for."""
    weights: WeightErrors
    left: Unquantized
    size_ratio: float
    """The correction's bytes among them."""
    losses_before: tuple[float, ...] = ()
    """Cross entropy of each text under the model the night began with, nats; empty without one."""
    correction_bits_per_weight: float = 0.0
    """Bits of the LoRA that is part of the model, over the weights of the quantized layers."""

    def as_metrics(self) -> Metrics:
        """Flat figures for a stage's record: `Fidelity.in_full`, and those in weight space."""
        nearest = self.nearest
        compared = {} if nearest is None else {"rtn_kl": nearest.kl, "rtn_ratio": self.rtn_ratio}
        bits, gain = self.correction_bits_per_weight, self.gain
        return {
            **self.outputs.in_full(),
            **compared,
            **({"gain": gain, "gain_lost": self.outputs.loss_change} if gain is not None else {}),
            **({"correction_bits_per_weight": bits} if bits else {}),
            "bits_per_weight": self.weights.bits_per_weight,
            "weight_error": self.weights.total,
            "worst_weight_error": self.weights.worst()[0][1],
            "size_ratio": self.size_ratio,
            "unquantized_share": self.left.share,
        }

    @property
    def rtn_ratio(self) -> float:
        """KL over that of round-to-nearest; below 1 calibration helped."""
        if self.nearest is None:
            return math.nan
        return max(self.outputs.kl, NOISE) / max(self.nearest.kl, NOISE)

    @property
    def gain(self) -> float | None:
        """What the original won on these texts since the night began, nats a token."""
        return self._gain.won if self.losses_before else None

    def gain_excess(self, share: float) -> float:
        """Return what rounding costs at least beyond `share` of the gain, see `Gain.excess`.

        To round costs something always: where nothing was won there is nothing to lose, minus
        infinity, as with one text or no model to compare with.
        """
        if len(self.losses_before) < 2 or self._gain.won <= 0:
            return -math.inf
        return self._gain.excess(share)

    @property
    def _gain(self) -> Gain:
        return self.outputs.gain_since(self.losses_before)

    def rtn_excess(self, ratio: float) -> float:
        """Return what KL is at least above `ratio` times that of round-to-nearest, nats per token.

        The lower end of the 95 % interval over texts, of pairs: of 8 bits both may be what the
        model's dtype rounds. Of one text the mean.
        """
        if self.nearest is None:
            return math.nan
        pairs = zip(self.outputs.texts, self.nearest.texts, strict=True)
        excess = [ours - ratio * theirs for (ours, _), (theirs, _) in pairs]
        found = ratio_estimate(excess, [count for _, count in self.outputs.texts])
        return found.at_least(len(excess))


def measure_quantization(
    original: Path,
    quantized: Path,
    batches: list[Batch],
    *,
    device: str,
    reporter: Reporter,
    nearest: bool = False,
    before: Path | None = None,
) -> Quantization:
    """Measure a quantized model as transformers loads it, one model in memory at a time.

    Args:
        original: What it was made of.
        quantized: bitsandbytes NF4 or int8, or GPTQ folder.
        batches: What both read.
        device: cpu or cuda.
        reporter: Hears how far it is.
        nearest: Whether the original is also rounded to nearest on the same grid; GPTQ alone.
        before: The model the night began with, to say what of its gain rounding takes.

    Raises:
        ContractError: If the vocabularies differ.
        ParityError: If a GPTQ layer multiplies with something else than its files hold.
    """
    found = read_quantized(quantized)
    left = unquantized(quantized)
    if left.sizes:
        reporter.message(str(left))
    weights = weight_errors(original, found)
    reporter.message(str(weights))

    def run(folder: Path, what: str, watch: Callable[[Any], None] | None = None) -> Any:
        heard = told(batches, reporter, f"texts of {what}")
        if watch is None:
            return folder_log_probs(folder, heard, device)
        return folder_log_probs(folder, heard, device, in_memory=True, watch=watch)

    reference = list(run(original, "the original"))
    rounded = None
    if nearest:
        watch = partial(_round, quantized=found)
        rounded = compare_log_probs(reference, run(original, "it rounded", watch), batches)
    losses = () if before is None else sequence_losses(run(before, "the base"), batches)
    check = partial(check_kernel, quantized=found) if found.method == "gptq" else None
    return Quantization(
        compare_log_probs(reference, run(quantized, "the quantized model", check), batches),
        rounded,
        weights,
        left,
        size_ratio(quantized, original),
        tuple(losses),
        correction_bits(quantized) / weights.count,
    )


def _round(model: Any, quantized: QuantizedFolder) -> None:
    settings = quantized.settings
    names = set(quantized_layers(model, quantized))
    round_layers(model, names, settings["bits"], settings["group_size"], settings["sym"])
