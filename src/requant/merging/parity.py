"""Whether a merged model is what was trained: module by module, by its logits, and its limits."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.comparison.batches import Batch
from requant.comparison.divergence import compare_log_probs, exceeds
from requant.comparison.folders import folder_log_probs
from requant.config.merge import MergeLimits
from requant.errors import ParityError
from requant.execution.progress import told
from requant.execution.stage import Metrics, Reporter
from requant.merging.change import Change
from requant.merging.module_outputs import PROBES, ModuleChange, watch_modules
from requant.merging.rounding import Rounding, check_rounding, rounding_of
from requant.models.headers import TORCH_NAMES, read_headers
from requant.statistics import Gain
from requant.wording import few

if TYPE_CHECKING:
    import torch


PROVABLE = 5
"""Times the arithmetic's own noise that an update must be for its faults to stand out."""
NOISE_MARGIN = 1.2
"""Times what rounding did to the weights that it may do to a module's outputs: of SmolLM2-135M's
210 modules in bfloat16, rounding ratios 0.60 to 0.99, the worst was 1.03."""
LEAST_KEPT = 0.1
"""Share of an update that must be left for its direction to be known better than that."""
CHANCE = 1.5
"""Standard errors of an update of rank one that a slope may be off by the choice of inputs, because
what rounding does follows the update; the worst of those modules was 0.59."""
LOGITS_MARGIN = 2
"""Times its rounding ratio that a model's logits may be off, squared a share of the update's KL:
there the measured factor was 0.12 to 0.69."""


@dataclass(frozen=True)
class Parity:
    """A merged model beside what it stands for."""

    metrics: Metrics
    modules: Mapping[str, float]
    """Merged tensor -> how far its module's output is off beyond rounding, as a share of what
    the adapter changes in it."""
    rounding: Rounding
    gain: Gain
    """Losses of the original, of what was trained, and of the merged model."""
    rounding_ratio: float
    """What rounding takes of the update's norm, all tensors together."""
    dtype: str
    """torch name of what most of the merged tensors are stored in."""


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
    reporter: Reporter | None = None,
) -> Parity:
    """Measure a merged model on held-out text, in float32.

    Args:
        merged: What is measured.
        changes: What merging did to each of its tensors.
        original: The model that was merged into.
        trained_on: The model the adapters were trained on.
        adapters: What was merged, `MergePlan.equivalent_adapters`.
        batches: What the models read.
        device: cpu or cuda.
        vocabulary: Rows of the embedding, where the adapter brings another number.
        reporter: Hears how far it is.

    Returns:
        parity_*: merged against original+adapter, unmerged, and parity_module_error, the worst
        module's (a missed module or a wrong scale shows there), of parity_modules; rounding_* and
        update_*: see `Rounding`; trained_*: merged against trained_on+adapter (what quantization
        costs the hand-over), trained_gain what that won over the original, nats per token.
    """

    def run(
        what: str,
        folder: Path,
        adapters: Sequence[tuple[Path, float]] = (),
        watch: Callable[[Any], None] = lambda model: None,
    ) -> "Iterator[torch.Tensor]":
        return folder_log_probs(
            folder,
            told(batches, reporter, f"texts of {what}"),
            device,
            adapters=adapters,
            exact=True,
            vocabulary=vocabulary,
            watch=watch,
        )

    found: list[ModuleChange] = []
    reference = list(
        run("the original with adapter", original, adapters, watch_modules(merged, found))
    )
    parity = compare_log_probs(reference, run("the merged model", merged), batches)
    before = compare_log_probs(reference, run("the original", original), batches)
    rounding = rounding_of(parity, before)
    trained = parity
    if trained_on != original:
        # Two such lists at once are what fills the memory.
        del reference
        reference = list(run("what was trained", trained_on, adapters))
        trained = compare_log_probs(reference, run("the merged model", merged), batches)
    gain = trained.gain_since([loss for _, loss in before.losses])
    modules = {tensor: _off(module, changes) for module in found for tensor in module.tensors}
    metrics = {
        **parity.as_metrics("parity_"),
        "parity_module_error": max(modules.values(), default=0.0),
        "parity_modules": float(sum(module.slope is not None for module in found)),
        **rounding.as_metrics(),
        **trained.as_metrics("trained_"),
        "trained_loss_change": trained.loss_change,
        "trained_gain": gain.won,
        "parity_tokens": float(parity.tokens),
    }
    ratio = sum(changes.values(), start=Change()).rounding_ratio
    return Parity(metrics, modules, rounding, gain, ratio, stored_in(merged, changes))


def _off(module: ModuleChange, changes: Mapping[str, Change]) -> float:
    """How far a module's output is off beyond rounding, as a share of what the adapter changes.

    Along the update by what rounding kept of it in the weights, across it by what rounding put
    there.
    """
    change = sum((changes.get(name, Change()) for name in module.tensors), start=Change())
    across = module.noise - NOISE_MARGIN * change.noise_ratio
    if module.slope is None:
        return module.noise
    chance = CHANCE * change.noise_ratio / PROBES**0.5
    # Half of an update of which rounding kept a fifth is off by a tenth of the whole.
    along = (abs(module.slope - change.kept_share) - chance) / max(change.kept_share, LEAST_KEPT)
    return math.nan if math.isnan(along + across) else max(along, across, 0.0)


def stored_in(folder: Path, names: Iterable[str]) -> str:
    """Return the torch name of the dtype that most of these tensors of a folder have."""
    headers = read_headers(folder)
    counted = Counter(headers[name].dtype for name in names if name in headers)
    return TORCH_NAMES[counted.most_common(1)[0][0]] if counted else "nothing"


def check_parity(parity: Parity, limits: MergeLimits, *, published: bool = True) -> None:
    """Refuse a merge that does not reproduce what was trained.

    Args:
        parity: From `measure_parity`.
        limits: Of every figure.
        published: Whether it is of what is published; rounding of anything else harms nobody.

    Raises:
        ParityError: With both distances, the limit, the likely cause and the way out.
    """
    metrics = parity.metrics
    both = (
        f"merged against original+adapter {metrics['parity_kl']:.3g} nats per token, against the "
        f"quantized base+adapter that was trained {metrics['trained_kl']:.3g} (agreement "
        f"{metrics['trained_agreement']:.3g}, loss {metrics['trained_loss_change']:+.3g} where it "
        f"had won {metrics['trained_gain']:.3g}); the adapter itself moves the model by "
        f"{metrics['update_kl']:.3g}"
    )
    if math.isnan(metrics["update_kl"]):
        raise ParityError(f"merge_fp16: the adapter's outputs are not finite: {both}; retrain it")
    if metrics["update_kl"] < PROVABLE * limits.parity_max_kl:
        raise ParityError(
            f"merge_fp16: the adapter moves the model by {metrics['update_kl']:.3g} nats per "
            f"token, too little to tell a right merge from a wrong one (at least {PROVABLE} times "
            f"merge_fp16.parity_max_kl={limits.parity_max_kl:g}); train longer or with a higher "
            "learning rate, or lower that limit"
        )
    over = {
        name: error
        for name, error in parity.modules.items()
        if exceeds(error, limits.parity_max_module)
    }
    if over:
        raise ParityError(
            f"merge_fp16: {few(over)}: the output is off by up to {max(over.values()):.3g} of "
            f"what the adapter changes in it, limit merge_fp16.parity_max_module="
            f"{limits.parity_max_module:g} beyond rounding; 1 is a module that was missed, 0.5 "
            f"half its scale, 2 the wrong sign. {both}; check that adapter and original belong "
            "together"
        )
    explained = (LOGITS_MARGIN * parity.rounding_ratio) ** 2 * metrics["update_kl"]
    if exceeds(metrics["parity_kl"], limits.parity_max_kl + explained):
        raise ParityError(
            f"merge_fp16: the merge does not do what the adapter does: {both}. The first is over "
            f"{limits.parity_max_kl + explained:.3g} (merge_fp16.parity_max_kl="
            f"{limits.parity_max_kl:g}, and what rounding can do, which takes "
            f"{parity.rounding_ratio:.3g} of the update's norm); likely a missed module or a wrong "
            "scale: check that adapter and original belong together. Where the model routes tokens "
            "(experts) rounding alone may do it: compare with dtype float32"
        )
    if published:
        check_rounding(parity.rounding, parity.dtype, limits)
    kept = {
        "trained_max_kl": metrics["trained_kl"] <= limits.trained_max_kl,
        "trained_min_agreement": metrics["trained_agreement"] >= limits.trained_min_agreement,
        "trained_max_gain_lost": _keeps_gain(parity.gain, limits),
    }
    over_limit = [f"merge_fp16.{name}={getattr(limits, name):g}" for name in kept if not kept[name]]
    if over_limit:
        raise ParityError(
            f"merge_fp16: the merged model is not the one that was trained: {both}. Missed: "
            f"{', '.join(over_limit)}; likely the quantized base is far from the original: use a "
            "finer quantize_base.method (int8), train longer, or merge into what was trained on "
            "(merge_fp16.base=dequantized), which costs text that the night does not bring"
        )


def _keeps_gain(gain: Gain, limits: MergeLimits) -> bool:
    """Tell whether neither more than allowed is shown to be lost, nor all of it in the mean."""
    all_lost = gain.won > 0 and gain.lost >= gain.won
    return not (all_lost or exceeds(gain.excess(limits.trained_max_gain_lost), 0))


def check_result(gain: Gain, limits: MergeLimits) -> None:
    """Refuse a combination of adapters that lost too much of what one of them won alone.

    Args:
        gain: Since the original: of trained_on+that adapter, and what the result has of it.
        limits: Of every figure.

    Raises:
        ParityError: With the loss, the gain, the limit and the way out.
    """
    if not _keeps_gain(gain, limits):
        raise ParityError(
            f"merge_fp16: what was combined loses {gain.lost:.3g} nats per token against what was "
            f"trained, which had won {gain.won:.3g}, limit merge_fp16.trained_max_gain_lost="
            f"{limits.trained_max_gain_lost:g} of it; give tonight's adapter a larger weight, or "
            "another combine or scales"
        )
