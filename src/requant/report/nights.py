"""Many nights of a line on one page: what came of each, and how the figures went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from requant.evaluation.matrix import Row
from requant.figures import figure
from requant.report.drawing import drawn_curve
from requant.report.heat_map import heat_map
from requant.report.page import render


@dataclass(frozen=True)
class NightEntry:
    """One night as its summary has it."""

    title: str
    ended: float
    """Seconds since the epoch."""
    outcome: str
    reason: str
    """Why it was refused or failed; empty where it was not."""
    page: str
    """Address of its report, relative to the page of all nights."""
    figures: Mapping[str, float]


def nights_report(
    line: str,
    nights: Sequence[NightEntry],
    unread: Sequence[str] = (),
    matrix: Sequence[Row] = (),
) -> str:
    """Write the page of many nights; it needs no network and no script.

    Args:
        line: Name of the model line.
        nights: The oldest first.
        unread: Why summaries could not be read, one sentence each.
        matrix: Scores of each generation on what each night held out, the first one first.
    """
    names = list(dict.fromkeys(name for night in nights for name in night.figures))
    curves = {
        name: tuple(
            (n, night.figures[name]) for n, night in enumerate(nights, 1) if name in night.figures
        )
        for name in names
    }
    return render(
        "nights.html.j2",
        line=line,
        unread=unread,
        matrix=heat_map(matrix) if len(matrix) > 1 else None,
        names=names,
        nights=[
            {
                "title": night.title,
                "ended": datetime.fromtimestamp(night.ended, UTC).strftime("%Y-%m-%d %H:%M"),
                "outcome": night.outcome,
                "reason": night.reason,
                "page": night.page,
                "cells": [
                    figure(night.figures[name]) if name in night.figures else "" for name in names
                ],
            }
            for night in reversed(nights)
        ],
        curves=[
            {"name": name, **drawn_curve(curve)} for name, curve in curves.items() if len(curve) > 1
        ],
    )
