"""Which step of the night cost which quality, and how much of what was won survives to the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from requant.config.task_names import NEW_SKILL, OLD_PERPLEXITY, PAST_PERPLEXITY
from requant.evaluation.artifact import CHAIN, JUDGES, share_kept
from requant.statistics import Paired

Skill = Literal["new", "old", "other"]

STEPS = {
    "quantized": "quantize_base",
    "adapted": "train_adapter",
    "base_adapted": "the original under the adapter",
    "merged": "merge_fp16",
    "continued": "continue_train",
    "requantized": "requantize_gptq",
}
"""What makes each model of the chain out of the one before it."""

ON_GRID = ("quantized", "requantized")
"""Neighbours where nothing passed through 16 bit in between."""

NATS = "nats a byte"
IN_16_BIT = ("base_adapted", "merged", "continued")
"""Models of the chain that have what was learned before it is rounded to few bits."""


@dataclass(frozen=True)
class Step:
    """What one step of the chain changed on one task."""

    name: str
    """The stage that made the later model, or whom it is held against."""
    earlier: str
    later: str
    task: str
    skill: Skill
    change: Paired
    """Up is better."""
    unit: str
    """Nats a byte where there are likelihoods, else the task's metric."""
    better: int
    worse: int
    """Documents whose score in the task's metric went up, and down."""

    @property
    def cost(self) -> bool:
        """Tell whether the task became worse beyond what chance explains, at 95 %."""
        return self.change.high is not None and self.change.high < 0


@dataclass(frozen=True)
class Survival:
    """The ledger of a night."""

    steps: tuple[Step, ...]
    """In the order of the chain, a task at a time."""
    totals: tuple[Step, ...]
    """From the first model to every later one."""
    judged: tuple[Step, ...]
    """From the champion and the anchor to the last model."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """New skill first."""
        order = {"new": 0, "old": 1, "other": 2}
        found = {step.task: step.skill for step in self.steps}
        return tuple(sorted(found, key=lambda task: (order[found[task]], task)))

    def costliest(self, task: str) -> Step | None:
        """Return the step that cost a task most; None where none did beyond chance."""
        costs = [step for step in self.steps if step.task == task and step.cost]
        return min(costs, key=lambda step: step.change.mean, default=None)

    def survived(self, task: str) -> float | None:
        """Return the share of the best gain in 16 bit that the last model still has.

        None where nothing was won beyond chance, at 95 %: then there is nothing to keep.
        """
        totals = [step for step in self.totals if step.task == task]
        in_16 = [step for step in totals if step.later in IN_16_BIT]
        best = max(in_16, key=lambda step: step.change.mean, default=None)
        if best is None or best.change.low is None or best.change.low <= 0:
            return None
        return totals[-1].change.mean / best.change.mean


def survival(paired: Sequence[Mapping[str, Any]]) -> Survival:
    """Read the ledger out of an evaluation's comparisons; see `requant.evaluation.results.compare`.

    Args:
        paired: Content of paired.json; that of an earlier version, without counts, says nothing.
    """
    rows = [row for row in paired if "better" in row]
    ours = [row for row in rows if row["earlier"] in CHAIN]
    there = [name for name in CHAIN if any(name in (r["earlier"], r["later"]) for r in ours)]
    along = {pair: place for place, pair in enumerate(pairwise(there))}
    steps = [row for row in ours if (row["earlier"], row["later"]) in along]
    totals = [row for row in ours if row["earlier"] == there[0]]
    made = STEPS | ({"requantized": "train_on_grid"} if ON_GRID in along else {})
    return Survival(
        steps=tuple(
            _step(row, made) for row in sorted(steps, key=lambda r: along[r["earlier"], r["later"]])
        ),
        totals=tuple(
            _step(row, made) for row in sorted(totals, key=lambda r: CHAIN.index(r["later"]))
        ),
        judged=tuple(_step(row, made) for row in rows if row["earlier"] in JUDGES),
    )


def in_words(ledger: Survival) -> list[str]:
    """Say of each task what cost most, and what survived of a gain; a line each."""
    lines = []
    for task in ledger.tasks:
        share = ledger.survived(task)
        shipped = "of the gain in 16 bit is in what ships"
        kept = "" if share is None else f"; {share_kept(share)} {shipped}"
        worst = ledger.costliest(task)
        if worst is None:
            lines.append(f"{task}: no step cost anything beyond chance{kept}")
            continue
        low, high = worst.change.low or 0.0, worst.change.high or 0.0
        lines.append(
            f"{task}: {worst.name} cost most, {worst.change.mean:+.3g} {worst.unit} "
            f"(95 %: {low:+.3g} to {high:+.3g}), {worst.worse} of {worst.change.n} documents "
            f"worse and {worst.better} better{kept}"
        )
    return lines


def figures(ledger: Survival) -> dict[str, float]:
    """Return the ledger as metrics: `<model>/<task>/step_<figure>`, of the step that made a model.

    Figures are change, low and high (in the step's unit, 95 %), better and worse (documents); and
    `survived/<task>`, the share of a gain in 16 bit that ships.
    """
    metrics: dict[str, float] = {}
    for step in ledger.steps:
        change = step.change
        of = {"change": change.mean, "low": change.low, "high": change.high}
        of |= {"better": float(step.better), "worse": float(step.worse)}
        metrics |= {
            f"{step.later}/{step.task}/step_{name}": value
            for name, value in of.items()
            if value is not None
        }
    shares = {task: ledger.survived(task) for task in ledger.tasks}
    return metrics | {f"survived/{t}": share for t, share in shares.items() if share is not None}


def _step(row: Mapping[str, Any], made: Mapping[str, str]) -> Step:
    """Read a comparison; `made` is what made each model of the chain."""
    earlier = row["earlier"]
    if earlier in JUDGES:
        name = f"against the {earlier}"
    else:
        # Of the models between, those of stages that were off do not exist; the adapted one is
        # left out with all that `evaluate.steps_between` leaves out.
        left_out = CHAIN[CHAIN.index(earlier) + 1 : CHAIN.index(row["later"])]
        alone = "adapted" not in left_out or (earlier, row["later"]) == ON_GRID
        name = made[row["later"]] if alone else f"up to {made[row['later']]}"
    return Step(
        name=name,
        earlier=earlier,
        later=row["later"],
        task=row["task"],
        skill=_skill(row["task"]),
        change=_upward(row),
        unit=NATS if row["rate"] else row["metric"],
        better=row["better"],
        worse=row["worse"],
    )


def _upward(row: Mapping[str, Any]) -> Paired:
    """Take the change in nats a byte, else in the task's metric, turned so that up is better."""
    if row["rate"]:
        return Paired(**row["rate"])
    change = Paired(**{name: row[name] for name in Paired.__dataclass_fields__})
    if row["higher_is_better"] or change.low is None or change.high is None:
        return change if row["higher_is_better"] else replace(change, mean=-change.mean)
    return replace(change, mean=-change.mean, low=-change.high, high=-change.low)


def _skill(task: str) -> Skill:
    if task in NEW_SKILL:
        return "new"
    return "old" if task in {OLD_PERPLEXITY, PAST_PERPLEXITY} else "other"
