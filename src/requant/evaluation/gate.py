"""The gate: may this model serve?"""

from collections.abc import Mapping, Sequence
from typing import Any

from requant.config.operations import Promote
from requant.config.task_names import PAST_PERPLEXITY
from requant.errors import ConfigError, GateError
from requant.statistics import verdict


def check_gate(
    section: Promote, paired: Sequence[Mapping[str, Any]], rolled_back: str | None
) -> None:
    """Refuse a model that a person has rolled back, or that is worse where it must not be.

    Worse means that the 95% interval of the paired difference (Student's t over the documents)
    between the base and the requantized model lies wholly on the worse side.

    Args:
        section: `guard` names the tasks.
        paired: As `requant.evaluation.results.compare` returns them.
        rolled_back: ISO time at which the version was rolled back.

    Raises:
        GateError: With the figures and the way out.
        ConfigError: If a guarded task was not evaluated on both models.
    """
    if rolled_back:
        raise GateError(
            f"promote: this model was rolled back at {rolled_back}; it serves again only when a "
            "person says so: requant promote CONFIG --version N"
        )
    for task, row in guarding(section, paired).items():
        low, high = row["low"], row["high"]
        found = verdict(low, high, higher_is_better=row["higher_is_better"])
        if found == "too few documents":
            raise GateError(
                f"promote: {task} was compared on {row['n']} documents, too few for an interval; "
                "give it more, or take it out of promote.guard"
            )
        if found == "worse":
            raise GateError(
                f"promote: {task} is worse than the base's: {row['metric']} changed by "
                f"{row['mean']:.4g}, 95% interval {low:.4g} to {high:.4g} over {row['n']} "
                f"documents; train less (train_adapter.optimisation, merge_fp16.scales), add rows "
                f"like the old text to prepare_data.source, or take {task} out of promote.guard"
            )


def idle_guards(section: Promote, paired: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the guards that guarded nothing, and why, one line each.

    Raises:
        ConfigError: If a guarded task was not evaluated on both models.
    """
    guards = guarding(section, paired)
    return [
        f"promote.guard: {task} guarded nothing: no earlier night left held-out rows that tonight "
        "does not train on"
        for task in section.guard
        if task not in guards
    ]


def guarding(section: Promote, paired: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return guarded task -> comparison of the last model with the first.

    Raises:
        ConfigError: If a guarded task was not evaluated on both models.
    """
    rows = {row["task"]: row for row in paired if is_whole_chain(row)}
    # Where no earlier night held anything out that tonight does not train on, there is no such row;
    # the configuration asks for a guard that is always there beside it.
    missing = [task for task in section.guard if task not in rows and task != PAST_PERPLEXITY]
    if missing:
        raise ConfigError(
            f"promote.guard: {missing[0]!r} was not compared between the base and the requantized "
            f"model; compared: {', '.join(sorted(rows)) or 'nothing'}"
        )
    return {task: rows[task] for task in section.guard if task in rows}


def is_whole_chain(row: Mapping[str, Any]) -> bool:
    """Tell whether a comparison is the one of the last model with the first."""
    return bool(row["earlier"] == "base" and row["later"] == "requantized")
