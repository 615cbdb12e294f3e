"""One night as one self-contained page: stages, scores, which step cost what, training curves."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from requant.evaluation.artifact import Scores, measured
from requant.evaluation.survival import Survival
from requant.figures import figure
from requant.gate import Decision
from requant.report.drawing import drawn_curve
from requant.report.headline import headline
from requant.report.page import render
from requant.report.survival import survival_page
from requant.report.verdict import verdict_figures
from requant.store import StageRecord
from requant.store.records import Curve
from requant.wording import duration

StageState = Literal["done", "cached", "off", "failed", "cancelled", "refused", "not reached"]


@dataclass(frozen=True)
class StageRow:
    """A stage as it went this night."""

    stage: str
    state: StageState
    record: StageRecord | None = None
    """None where there is no artifact."""
    error: str = ""
    """Why it failed or was refused, and the way out; empty where it was not."""
    digest: str = ""
    """Digest of a promoted model; a promotion makes no artifact of its own."""
    headline: str = ""
    """What came of a promotion."""


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
    ledger: Survival | None = None,
    merged: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    decision: Decision | None = None,
) -> str:
    """Write the report of a night; it needs no network and no script.

    Args:
        title: Of the night.
        rows: Stages in the order of the chain.
        scores: Content of the evaluation's scores.json.
        ledger: Which step changed what.
        merged: Content of the merged model's merge.json: a row for each tensor.
        notes: What a person should know although nothing failed, a line each.
        decision: The gate's on the night's model.
    """
    records = [row.record for row in rows if row.record]
    merge = next((record.metrics for record in records if record.stage == "merge_fp16"), {})
    return render(
        "report.html.j2",
        title=title,
        rows=[_row(row) for row in rows],
        failures=[row for row in rows if row.error],
        notes=notes,
        gate=verdict_figures(decision, told=any(row.error for row in rows)) if decision else None,
        score_table=score_table(scores or {}),
        models=list(scores or {}),
        survival=survival_page(ledger) if ledger else None,
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
    return [
        {
            "task": task,
            "metric": metric,
            "better": _better(tasks.get(task, {}).get(metric, {}) for tasks in scores.values()),
            "cells": [_cell(tasks.get(task, {}).get(metric)) for tasks in scores.values()],
        }
        for task, metric in measured(scores)
    ]


def _better(cells: Iterable[Mapping[str, float | bool | None]]) -> str:
    """Say in which direction a metric is better, as its task says it; empty where it does not."""
    said = {cell.get("higher_is_better") for cell in cells} - {None}
    return ("higher" if said.pop() else "lower") if said else ""


def _row(row: StageRow) -> dict[str, str]:
    if row.record is None:
        return {
            "stage": row.stage,
            "state": row.state,
            "seconds": "",
            "digest": row.digest[:12],
            "headline": row.headline,
        }
    return {
        "stage": row.stage,
        "state": row.state,
        "seconds": duration(row.record.seconds),
        "digest": row.record.digest[:12],
        "headline": headline(row.record),
    }


def _cell(score: Mapping[str, float | bool | None] | None) -> dict[str, str] | None:
    value = (score or {}).get("value")
    if value is None:
        return None
    stderr = (score or {}).get("stderr")
    return {"value": figure(value), "stderr": figure(stderr) if stderr is not None else ""}


def _loss_first(item: tuple[str, Curve]) -> tuple[bool, str]:
    return item[0] != "loss", item[0]
