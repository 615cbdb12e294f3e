"""The artifact that evaluate makes: scores of every model, and their paired comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCORES = "scores.json"
PAIRED = "paired.json"
SAMPLES = "samples"

Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | bool | None]]]]
"""Model -> task -> metric -> {value, stderr, higher_is_better}; the last one is missing in those of
requant's first weeks."""


def read_scores(folder: Path) -> Scores:
    """Read the scores of all models."""
    scores: Scores = json.loads((folder / SCORES).read_text())
    return scores


def read_paired(folder: Path) -> list[dict[str, Any]]:
    """Read the comparisons: one entry a pair of models and task, with mean, low, high and n."""
    paired: list[dict[str, Any]] = json.loads((folder / PAIRED).read_text())
    return paired
