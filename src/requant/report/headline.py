"""The one figure of a stage that a person wants first."""

import math
from collections.abc import Callable, Mapping

from requant.store import StageRecord

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
"""How people write the size of a model."""


def headline(record: StageRecord) -> str:
    """Say the one or two figures of a stage that a person asks for first; empty without figures."""
    metrics = record.metrics
    for pattern in _PATTERNS.get(record.stage, ()):
        text = pattern(metrics)
        if text:
            return text
    return ", ".join(f"{name} {figure(value)}" for name, value in sorted(metrics.items())[:2])


def figure(value: float) -> str:
    """Write a number in at most four significant digits."""
    if 1e6 <= abs(value) < 1e15:
        scale, unit = next(pair for pair in UNITS if abs(value) >= pair[0])
        return f"{value / scale:.3g}{unit}"
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def _training(metrics: Mapping[str, float]) -> str:
    # Of what was saved, where it is known: the steps' own losses are each of another batch.
    for first, last, what in (
        ("heldout_loss_before", "heldout_loss_saved", "held-out loss"),
        ("loss_first", "loss_last", "loss"),
    ):
        if {first, last} <= metrics.keys():
            return f"{what} {figure(metrics[first])} → {figure(metrics[last])}"
    return ""


def _fidelity(prefix: str) -> Callable[[Mapping[str, float]], str]:
    def text(metrics: Mapping[str, float]) -> str:
        kl, agreement = (metrics.get(f"{prefix}{name}") for name in ("kl", "agreement"))
        parts = [
            f"kl {figure(kl)}" if kl is not None else "",
            f"{agreement:.1%} agree" if agreement is not None else "",
        ]
        return ", ".join(part for part in parts if part)

    return text


def _named(pattern: str, *names: str) -> Callable[[Mapping[str, float]], str]:
    def text(metrics: Mapping[str, float]) -> str:
        if not set(names) <= metrics.keys():
            return ""
        return pattern.format(*(figure(metrics[name]) for name in names))

    return text


def _score(metrics: Mapping[str, float]) -> str:
    """Accuracy of the model that ships, else of the first one that has one."""
    names = sorted(metrics, key=lambda name: (not name.startswith("requantized/"), name))
    for name in names:
        if name.split("/")[-1] in {"acc", "acc_norm"} and name.count("/") == 2:
            model, task, metric = name.split("/")
            return f"{metric} {figure(metrics[name])} ({model}, {task})"
    return ""


_PATTERNS: Mapping[str, tuple[Callable[[Mapping[str, float]], str], ...]] = {
    "prepare_base": (_named("loss {}, {} parameters", "loss", "parameters"),),
    "prepare_data": (_named("{} training rows, {} held out", "train_rows", "heldout_rows"),),
    "quantize_base": (_fidelity(""), _named("{} of the base's size", "size_ratio")),
    "train_adapter": (_training,),
    "merge_fp16": (_fidelity("trained_"),),
    "continue_train": (_training,),
    "requantize_gptq": (_fidelity(""), _fidelity("fidelity_")),
    "evaluate": (_score,),
}
"""Stage -> wordings, the first one whose figures are all there is used."""
