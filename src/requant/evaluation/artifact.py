"""The artifact that evaluate makes: scores of every model, and their paired comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.config.task_names import HELDOUT_PERPLEXITY
from requant.figures import figure

SCORES = "scores.json"
PAIRED = "paired.json"
SAMPLES = "samples"
POOLS = "pools.json"
"""Task -> documents that there are of it, of which samples may hold fewer."""

EXAMPLES = "examples.json"
"""A few held-out questions, and what models answer to them."""

CHAIN = ("base", "quantized", "adapted", "base_adapted", "merged", "continued", "requantized")
"""Tonight's models, in the order of the chain: the original; what the adapter was trained on, alone
and with the adapter beside its weights; the original with the adapter beside its weights; and what
came of it."""
WITH_ADAPTER = frozenset({"adapted", "base_adapted"})
"""Those that are a model and tonight's adapter."""
JUDGES = ("anchor", "champion")
"""The models of other nights that tonight's last one is held against."""
MODELS = (*JUDGES, *CHAIN)
"""The models that may be evaluated."""

Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | bool | None]]]]
"""Model -> task -> metric -> {value, stderr, higher_is_better}; the last one is missing in those of
requant's first weeks."""


def read_scores(folder: Path) -> Scores:
    """Read the scores of all models."""
    scores: Scores = json.loads((folder / SCORES).read_text())
    return scores


def measured(scores: Scores) -> list[tuple[str, str]]:
    """List task and metric of every figure; a model may lack a task, the first one too."""
    return sorted(
        {
            (task, metric)
            for tasks in scores.values()
            for task, metrics in tasks.items()
            for metric in metrics
        }
    )


def new_skill(metrics: Mapping[str, float]) -> str:
    """Say how likely held-out rows are to the base and to the last model, and what of it ships.

    Args:
        metrics: `<model>/<task>/<metric>` -> value, and `survived/<task>`.
    """
    name = f"{HELDOUT_PERPLEXITY}/byte_perplexity"
    found = [metrics[f"{model}/{name}"] for model in CHAIN if f"{model}/{name}" in metrics]
    if len(found) < 2:
        return ""
    share = metrics.get(f"survived/{HELDOUT_PERPLEXITY}")
    kept = "" if share is None else f", {share_kept(share)} of the gain ships"
    return f"byte perplexity {figure(found[0])} → {figure(found[-1])}{kept}"


def share_kept(share: float) -> str:
    """Say a share of a gain; of what became a loss nothing is left, and no percentage says it."""
    return f"{share:.0%}" if share > 0 else "nothing"


def accuracy(metrics: Mapping[str, float]) -> str:
    """Say the accuracy of the model that ships, else of the first one that has one.

    Args:
        metrics: `<model>/<task>/<metric>` -> value.
    """
    names = sorted(metrics, key=lambda name: (not name.startswith("requantized/"), name))
    for name in names:
        if name.split("/")[-1] in {"acc", "acc_norm"} and name.count("/") == 2:
            model, task, metric = name.split("/")
            return f"{metric} {figure(metrics[name])} ({model}, {task})"
    return ""


def read_paired(folder: Path) -> list[dict[str, Any]]:
    """Read the comparisons: one entry a pair of models and task, with mean, low, high and n."""
    paired: list[dict[str, Any]] = json.loads((folder / PAIRED).read_text())
    return paired


def read_pools(folder: Path) -> dict[str, int]:
    """Read how many units there are of each generated task; an earlier version says none."""
    path = folder / POOLS
    pools: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    return pools
