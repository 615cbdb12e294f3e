"""One night as one self-contained page: stages, scores, which step cost what, training curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from requant.store import StageRecord
from requant.store.records import Curve

Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]
"""model -> task -> metric -> value, stderr"""

StageState = Literal["done", "cached", "off", "failed", "cancelled", "refused", "not reached"]

CURVE_WIDTH, CURVE_HEIGHT = 420, 150
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
"""How people write the size of a model."""

LOWER_IS_BETTER = ("perplexity", "loss", "bits", "kl", "error")


@dataclass(frozen=True)
class StageRow:
    """A stage as it went this night."""

    stage: str
    state: StageState
    record: StageRecord | None = None
    """None where there is no artifact."""
    error: str = ""
    """Why it failed and the way out; empty where it did not."""


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


def duration(seconds: float) -> str:
    """Write a time as people say it: 0.3 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


ROUNDING = (
    "update_kl",
    "rounding_kl",
    "rounding_kl_share",
    "update_gain",
    "rounding_loss",
    "rounding_loss_error",
    "kept_share",
)
"""What a stage that rounds weights says of it."""


def night_report(
    title: str,
    rows: Sequence[StageRow],
    scores: Scores | None = None,
    paired: Sequence[Mapping[str, Any]] = (),
    merged: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Write the report of a night; it needs no network and no script.

    Args:
        title: Of the night.
        rows: Stages in the order of the chain.
        scores: Content of the evaluation's scores.json.
        paired: Content of the evaluation's paired.json: entries with earlier, later, task, metric,
            higher_is_better, mean (of `later` minus `earlier` over the same documents), stderr,
            low and high (95%; None on a single document), n.
        merged: Content of the merged model's merge.json: a row for each tensor.
        notes: What a person should know although nothing failed, a line each.
    """
    records = [row.record for row in rows if row.record]
    merge = next((record.metrics for record in records if record.stage == "merge_fp16"), {})
    return render(
        "report.html.j2",
        title=title,
        rows=[_row(row) for row in rows],
        failures=[row for row in rows if row.error],
        notes=notes,
        score_table=score_table(scores or {}),
        models=list(scores or {}),
        steps=[_step(entry) for entry in paired],
        merge=[
            (name, figure(value)) for name, value in merge.items() if name != "parity_of_result"
        ],
        rounding=[
            {"stage": r.stage, **{name: figure(r.metrics[name]) for name in ROUNDING}}
            for r in records
            if r.metrics.keys() >= set(ROUNDING)
        ],
        merge_has_twin=bool(merge.get("parity_of_result", 1)),
        merged=[
            {name: figure(cell) if isinstance(cell, float) else cell for name, cell in row.items()}
            for row in merged
        ],
        curves=[
            {"stage": record.stage, "name": name, **drawn_curve(curve)}
            for record in records
            for name, curve in sorted(record.curves.items(), key=_loss_first)
            if len(curve) > 1 and any(math.isfinite(value) for _, value in curve)
        ],
    )


def score_table(scores: Scores) -> list[dict[str, Any]]:
    """Turn scores into a row per task and metric, a cell per model, None where not measured."""
    names = sorted(
        {
            (task, metric)
            for tasks in scores.values()
            for task, metrics in tasks.items()
            for metric in metrics
        }
    )
    return [
        {
            "task": task,
            "metric": metric,
            "better": "lower" if lower_is_better(metric) else "higher",
            "cells": [_cell(tasks.get(task, {}).get(metric)) for tasks in scores.values()],
        }
        for task, metric in names
    ]


def lower_is_better(metric: str) -> bool:
    """Tell by its name whether a metric falls as a model gets better."""
    return any(word in metric.lower() for word in LOWER_IS_BETTER)


Verdict = Literal["better", "worse", "no clear change", "too few documents"]


def verdict(low: float | None, high: float | None, *, higher_is_better: bool) -> Verdict:
    """Judge a paired difference by its 95% interval, which one document does not have."""
    if low is None or high is None:
        return "too few documents"
    if low <= 0 <= high:
        return "no clear change"
    return "better" if (low > 0) == higher_is_better else "worse"


def drawn_curve(curve: Curve) -> dict[str, Any]:
    """Scale a curve into a picture of CURVE_WIDTH x CURVE_HEIGHT pixels, y upwards.

    Args:
        curve: At least one (step, value) whose value is finite; others leave no mark.

    Returns:
        points (for an SVG polyline), the first and last steps and extreme values for the axes, and
        how many points are left out.
    """
    left_out = sum(not math.isfinite(value) for _, value in curve)
    curve = tuple(point for point in curve if math.isfinite(point[1]))
    steps = [step for step, _ in curve]
    values = [value for _, value in curve]
    low, high = min(values), max(values)
    across = max(steps[-1] - steps[0], 1)
    up = (high - low) or 1.0
    points = " ".join(
        f"{(step - steps[0]) / across * CURVE_WIDTH:.1f},"
        f"{CURVE_HEIGHT - (value - low) / up * CURVE_HEIGHT:.1f}"
        for step, value in curve
    )
    return {
        "points": points,
        "first_step": steps[0],
        "last_step": steps[-1],
        "low": figure(low),
        "high": figure(high),
        "first": figure(values[0]),
        "last": figure(values[-1]),
        "width": CURVE_WIDTH,
        "height": CURVE_HEIGHT,
        "left_out": left_out,
    }


def render(template: str, **values: Any) -> str:
    """Fill one of the package's HTML templates; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("requant", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _row(row: StageRow) -> dict[str, str]:
    if row.record is None:
        return {"stage": row.stage, "state": row.state, "seconds": "", "digest": "", "headline": ""}
    return {
        "stage": row.stage,
        "state": row.state,
        "seconds": duration(row.record.seconds),
        "digest": row.record.digest[:12],
        "headline": headline(row.record),
    }


def _cell(score: Mapping[str, float | None] | None) -> dict[str, str] | None:
    value = (score or {}).get("value")
    if value is None:
        return None
    stderr = (score or {}).get("stderr")
    return {"value": figure(value), "stderr": figure(stderr) if stderr is not None else ""}


def _step(entry: Mapping[str, Any]) -> dict[str, Any]:
    mean, low, high = (entry[name] for name in ("mean", "low", "high"))
    known = low is not None and high is not None
    # Whisker and dot on an axis whose middle is zero and whose ends are the interval's farther end.
    ends = (low, mean, high) if known else (mean, mean, mean)
    reach = max(map(abs, ends)) or 1.0
    return {
        "step": f"{entry['earlier']} → {entry['later']}",
        "task": entry["task"],
        "metric": entry["metric"],
        "mean": f"{mean:+.4g}",
        "interval": f"{low:+.4g} to {high:+.4g}" if known else "",
        "n": entry["n"],
        "verdict": verdict(low, high, higher_is_better=bool(entry["higher_is_better"])),
        "whisker": [f"{50 + 45 * end / reach:.1f}" for end in ends],
    }


def _loss_first(item: tuple[str, Curve]) -> tuple[bool, str]:
    return item[0] != "loss", item[0]


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
