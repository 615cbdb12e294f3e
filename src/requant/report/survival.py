"""The ledger of a night as people read it: a table, a picture, and a sentence a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from requant.evaluation.survival import NATS, Step, Survival, in_words
from requant.statistics import verdict

WIDTH, HEIGHT = 560, 190
"""Of the picture, in pixels, without the words around it."""
INSIDE = 12
"""Pixels between the picture's edge and what is farthest out."""


def change_words(step: Step) -> str:
    """Write a change with half its 95 % interval: +0.046 ± 0.012."""
    change = step.change
    reach = "" if change.high is None else f" ± {change.high - change.mean:.2g}"
    return f"{change.mean:+.3g}{reach}"


def survival_table(ledger: Survival) -> list[list[str]]:
    """Write a row a step, a column a task, and the way from first to last under them.

    Returns:
        The heading first; nothing where no step was measured.
    """
    if not ledger.steps:
        return []
    last = ledger.totals[-1]
    groups = dict.fromkeys((step.name, step.earlier, step.later) for step in ledger.steps)
    rows = [
        [name, *_cells(ledger, ledger.steps, earlier, later)] for name, earlier, later in groups
    ]
    if len(rows) > 1:
        whole = f"all: {last.earlier} to {last.later}"
        rows.append([whole, *_cells(ledger, ledger.totals, last.earlier, last.later)])
    against = dict.fromkeys((step.name, step.earlier, step.later) for step in ledger.judged)
    rows += [
        [name, *_cells(ledger, ledger.judged, earlier, later)] for name, earlier, later in against
    ]
    units = {step.task: step.unit for step in ledger.steps}
    return [["step", *(f"{task} ({units[task]})" for task in ledger.tasks)], *rows]


def survival_markdown(table: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """Write table and sentences as Markdown; empty where no step was measured.

    Args:
        table: From `survival_table`.
        words: From `requant.evaluation.survival.in_words`.
    """
    if not table:
        return ""
    heading, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join(
        [
            "**Which step cost what**",
            "",
            heading,
            f"|---{'|--:' * (len(table[0]) - 1)}|",
            *rows,
            "",
            *(f"- {line}" for line in words),
        ]
    )


@dataclass(frozen=True)
class Mark:
    """One model of one task in the picture, in pixels from its upper left corner."""

    x: str
    y: str
    top: str
    """End of the interval of the difference from the first model."""
    bottom: str
    said: str


def survival_page(ledger: Survival) -> dict[str, Any] | None:
    """Return what the report shows of the ledger; None where no step was measured."""
    if not ledger.steps:
        return None
    likely = [step for step in ledger.totals if step.unit == NATS]
    models = [ledger.totals[0].earlier, *dict.fromkeys(step.later for step in ledger.totals)]
    ends = [
        end
        for step in likely
        for end in (step.change.low, step.change.mean, step.change.high, 0.0)
        if end is not None
    ]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    scale = (HEIGHT - 2 * INSIDE) / ((high - low) or 1.0)

    def down(value: float) -> str:
        return f"{INSIDE + (high - value) * scale:.1f}"

    def across(model: str) -> str:
        place = models.index(model) / max(1, len(models) - 1)
        return f"{INSIDE + place * (WIDTH - 2 * INSIDE):.1f}"

    def marks(task: str) -> list[Mark]:
        first = Mark(across(models[0]), down(0.0), down(0.0), down(0.0), f"{models[0]}: 0")
        return [first] + [
            Mark(
                across(step.later),
                down(step.change.mean),
                down(step.change.high if step.change.high is not None else step.change.mean),
                down(step.change.low if step.change.low is not None else step.change.mean),
                f"{step.later}, {task}: {change_words(step)} nats a byte from {step.earlier}",
            )
            for step in likely
            if step.task == task
        ]

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "zero": down(0.0),
        "high": f"{high:+.3g}",
        "low": f"{low:+.3g}",
        "models": [(model, across(model)) for model in models],
        "lines": [
            {"task": task, "number": number, "marks": marks(task)}
            for number, task in enumerate(dict.fromkeys(step.task for step in likely))
        ],
        "words": in_words(ledger),
        "rows": [_row(step) for step in (*ledger.steps, *_last(ledger), *ledger.judged)],
    }


def _last(ledger: Survival) -> list[Step]:
    """Return the way from the first model to the last, where it is more than one step."""
    last = ledger.totals[-1].later
    several = len({step.later for step in ledger.totals}) > 1
    return [step for step in ledger.totals if step.later == last and several]


def _row(step: Step) -> dict[str, str]:
    change = step.change
    known = change.low is not None and change.high is not None
    return {
        "name": step.name,
        "models": f"{step.earlier} → {step.later}",
        "task": step.task,
        "change": f"{change.mean:+.3g}",
        "unit": step.unit,
        "interval": f"{change.low:+.3g} to {change.high:+.3g}" if known else "",
        "better": str(step.better),
        "worse": str(step.worse),
        "n": str(change.n),
        "verdict": verdict(change.low, change.high, higher_is_better=True),
    }


def _cells(ledger: Survival, steps: tuple[Step, ...], earlier: str, later: str) -> list[str]:
    found = {s.task: s for s in steps if (s.earlier, s.later) == (earlier, later)}
    return [change_words(found[task]) if task in found else "" for task in ledger.tasks]
