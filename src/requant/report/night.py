"""One night as one self-contained page: stages, scores, which step cost what, training curves."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from requant.canonical import flattened
from requant.evaluation.artifact import Scores, measured
from requant.evaluation.examples import Example
from requant.evaluation.survival import Survival
from requant.figures import figure
from requant.gate import Decision
from requant.report.drawing import drawn_curve
from requant.report.headline import headline
from requant.report.lineage import lineage_boxes
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


@dataclass(frozen=True)
class Findings:
    """What the artifacts of a night say, besides the records of its stages."""

    scores: Scores | None = None
    """Content of the evaluation's scores.json."""
    ledger: Survival | None = None
    """Which step changed what."""
    examples: Sequence[Example] = ()
    """Questions, and what models answered."""
    merged: Sequence[Mapping[str, Any]] = ()
    """Content of the merged model's merge.json: a row for each tensor."""
    decision: Decision | None = None
    """The gate's on the night's model."""


def night_report(
    title: str,
    rows: Sequence[StageRow],
    found: Findings | None = None,
    notes: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """Write the report of a night; it needs no network and no script.

    Args:
        title: Of the night.
        rows: Stages in the order of the chain.
        found: In the night's artifacts.
        notes: What a person should know although nothing failed, a line each.
        links: Digest to the address of its page.
    """
    found = found or Findings()
    scores = found.scores or {}
    records = [row.record for row in rows if row.record]
    cached = [row.stage for row in rows if row.state == "cached"]
    told = any(row.error for row in rows)
    merge = next((record.metrics for record in records if record.stage == "merge_fp16"), {})
    return render(
        "report.html.j2",
        title=title,
        rows=[_row(row) for row in rows],
        failures=[row for row in rows if row.error],
        notes=notes,
        gate=verdict_figures(found.decision, told=told) if found.decision else None,
        score_table=score_table(scores),
        models=list(scores),
        survival=survival_page(found.ledger) if found.ledger else None,
        examples=[_example(each, scores) for each in found.examples],
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
            for row in found.merged
        ],
        curves=[
            {"stage": record.stage, "name": name, **drawn_curve(curve)}
            for record in records
            for name, curve in sorted(record.curves.items(), key=_loss_first)
            if len(curve) > 1 and any(math.isfinite(value) for _, value in curve)
        ],
        boxes=lineage_boxes(records, links, cached),
        details=[_details(record) for record in records],
    )


def _example(example: Example, order: Iterable[str]) -> dict[str, Any]:
    """Put the answers into the order of the other tables."""
    said = [(name, example.answers[name]) for name in order if name in example.answers]
    return {"question": example.question, "wanted": example.wanted, "said": said}


def _details(record: StageRecord) -> dict[str, Any]:
    """Return all a stage was told and measured; scores of models stand in their own table."""
    fields = record.key_fields
    config = flattened(fields.get("config", {}))
    return {
        "stage": record.stage,
        "figures": [(n, figure(v)) for n, v in sorted(record.metrics.items()) if "/" not in n],
        "config": [(name, json.dumps(value)) for name, value in sorted(config.items())],
        "libraries": ", ".join(f"{n} {v}" for n, v in sorted(fields.get("libraries", {}).items())),
        "seed": str(fields.get("seed", "")),
    }


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
