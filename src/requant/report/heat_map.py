"""The matrix of generations and nights as a table of colours, and in words."""

from collections.abc import Sequence
from typing import Any

from requant.evaluation.matrix import Mean, Row, Summary, change, mean_scores, summary
from requant.figures import figure

STRONG = 0.6
"""Opacity of the largest change; text stays readable on it, light and dark."""
BETTER, WORSE = "46, 160, 67", "248, 81, 73"
"""Red, green and blue of a change."""


def heat_map(rows: Sequence[Row]) -> dict[str, Any]:
    """Lay the matrix out: a generation a row, a night a column.

    Args:
        rows: At least one, the first generation first.
    """
    nights = sorted({night for row in rows for night in row.nights})
    own = {row.night: row for row in rows}
    changes = {
        (row.night, night): found.mean
        for row in rows
        for night in nights
        if night in own and night < row.night and (found := change(own[night], row, night))
    }
    most = max(map(abs, changes.values()), default=0.0) or 1.0
    kept = summary(rows)

    def cell(row: Row, night: int) -> dict[str, str]:
        means, moved = mean_scores(row), changes.get((row.night, night))
        if night not in means:
            return {"text": "", "change": "", "colour": ""}
        if moved is None:
            return {"text": figure(-means[night]), "change": "", "colour": ""}
        colour = f"rgba({BETTER if moved > 0 else WORSE}, {STRONG * abs(moved) / most:.2f})"
        return {"text": figure(-means[night]), "change": f"{-moved:+.3f}", "colour": colour}

    return {
        "nights": nights,
        "rows": [
            {"night": row.night, "cells": [cell(row, night) for night in nights]} for row in rows
        ],
        "words": in_words(kept) if kept else "",
    }


def in_words(found: Summary) -> str:
    """Say what the last generation kept, with standard errors; nats a byte."""
    parts = [f"The newest generation needs {_loss(found.average)} on average"]
    if found.backward_transfer:
        mean = found.backward_transfer
        parts.append(
            f"backward transfer {mean.value:+.4f} ± {mean.stderr:.4f} over {mean.nights} nights"
        )
    if found.forgetting:
        parts.append(f"forgetting {found.forgetting.value:+.4f} ± {found.forgetting.stderr:.4f}")
    return "; ".join(parts) + " (nats a byte)."


def _loss(mean: Mean) -> str:
    return f"{-mean.value:.4f} ± {mean.stderr:.4f}"
