"""What was found on one task against one reference, in figures and in words."""

import math
from dataclasses import dataclass
from typing import Literal

from requant.figures import figure
from requant.gate.intervals import interval, mcnemar
from requant.gate.rules import Differences, Kind, Role, Rule
from requant.gate.weighing import Weighed

State = Literal["shown", "shown worse", "open"]


@dataclass(frozen=True)
class Finding:
    """Everything that a page says of one task against one reference."""

    task: str
    reference: str
    role: Role
    kind: Kind
    n: int
    """Units."""
    mean: float
    trimmed: float
    """Mean without the tenth of the units at either end."""
    low: float | None
    high: float | None
    interval: str
    """What kind of 95% interval it is."""
    margin: float
    """What a guard may lose; of a target the smallest gain worth having."""
    log_e_for: float
    """The lesser of mean and broken units, adjusted for the number of targets; in nats."""
    log_e_against: float
    """The greater of mean and broken units, adjusted for the number of guards; in nats."""
    broken: int
    flips: tuple[int, int] | None
    mcnemar_p: float | None
    units_needed: int | None
    """Units at which an open task would pass, should they go on so; None: never, or not open."""
    state: State
    sentence: str


def finding(
    rule: Rule,
    differences: Differences,
    weighed: Weighed,
    state: State,
    log_for: float,
    log_against: float,
    wanted: float,
) -> Finding:
    """Put what was found into figures and a sentence.

    Args:
        log_for: Evidence of the mean for the candidate, adjusted.
        log_against: Evidence against it, adjusted.
        wanted: log(1 / alpha), which `log_for` must reach.
    """
    low, high, name = interval(differences)
    flips = differences.flips
    p_value = None if flips is None else mcnemar(flips)
    least = log_for if weighed.tail_for is None else min(log_for, weighed.tail_for)
    needed = weighed.units_for if state == "open" else None
    said = [_changed(differences, weighed, low, high)]
    if flips is not None and p_value is not None:
        said.append(
            f"{flips[0]} documents went from right to wrong and {flips[1]} from wrong to right "
            f"(exact McNemar p = {figure(p_value)})"
        )
    if weighed.broken:
        said.append(f"{weighed.broken} of them lost more than {figure(rule.reach)}")
    if (weighed.trimmed > rule.null) != (weighed.mean > rule.null):
        said.append(
            f"without the tenth of the units at either end {signed(weighed.trimmed)}: few units "
            "make the mean what it is"
        )
    said.append(_judged(rule, weighed, state, least, log_against, wanted))
    if state == "open":
        said.append(_missing(rule, differences, weighed))
    return Finding(
        task=differences.task,
        reference=differences.reference,
        role=rule.role,
        kind=differences.kind,
        n=len(differences.values),
        mean=weighed.mean,
        trimmed=weighed.trimmed,
        low=low,
        high=high,
        interval=name,
        margin=rule.margin if rule.role == "guard" else rule.worth,
        log_e_for=least,
        log_e_against=log_against,
        broken=weighed.broken,
        flips=flips,
        mcnemar_p=p_value,
        units_needed=needed,
        state=state,
        sentence="; ".join(said),
    )


def _changed(
    differences: Differences, weighed: Weighed, low: float | None, high: float | None
) -> str:
    who = f"{differences.task} against the {differences.reference}"
    count = len(differences.values)
    if not count:
        return f"{who}: nothing was compared"
    units = "1 unit" if count == 1 else f"{count} units"
    if low is None or high is None:
        return f"{who}: {signed(weighed.mean)} on {units}, too few for an interval"
    return f"{who}: {signed(weighed.mean)} ({signed(low)} to {signed(high)}) on {units}"


def _judged(
    rule: Rule, weighed: Weighed, state: State, least: float, against: float, wanted: float
) -> str:
    evidence = f"e = {e_value(least)} of {e_value(wanted)}"
    if rule.role == "target":
        gain = f"a gain of {figure(rule.worth)}" if rule.worth else "any gain"
        return {
            "shown": f"it is better: {evidence}",
            "shown worse": f"{gain} is ruled out: e = {e_value(against)}",
            "open": f"it is not shown to be better: {evidence}",
        }[state]
    loss = f"a loss of {figure(rule.margin)}"
    if weighed.tail_for is not None:
        loss += f" or of more than {figure(rule.reach)} on {figure(100 * rule.broken_share)}%"
    return {
        "shown": f"{loss} is ruled out: {evidence}",
        "shown worse": f"{loss} is shown: e = {e_value(against)}",
        "open": f"{loss} is not ruled out: {evidence}",
    }[state]


def _missing(rule: Rule, differences: Differences, weighed: Weighed) -> str:
    if not differences.values:
        return "give it documents"
    if weighed.units_for is not None:
        return f"about {weighed.units_for} units would decide, should they go on like these"
    if weighed.mean <= rule.null:
        return f"no number of units would show it with a mean at or below {figure(rule.null)}"
    if weighed.trimmed <= rule.null:
        return "no number of units would show it: most of them say otherwise than the mean"
    broken = weighed.broken >= rule.broken_share * len(differences.values)
    if broken and rule.looks_for_broken(differences.kind):
        return "no number of units would show it with so many broken"
    return "no number of units would show it: what counts of the gains is less than of the losses"


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"+{figure(value)}" if value > 0 else figure(value)


def e_value(log_e: float) -> str:
    """Write an e-value, of which only the logarithm may fit a float: 0.03, 7300, 10^12."""
    if math.isinf(log_e):
        return "infinity" if log_e > 0 else "0"
    if abs(log_e) < math.log(1e5):
        return figure(math.exp(log_e))
    return f"10^{math.floor(log_e / math.log(10))}"
