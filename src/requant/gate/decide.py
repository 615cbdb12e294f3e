"""The verdict: may this model serve?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from requant.errors import ConfigError
from requant.figures import figure
from requant.gate.findings import Finding, State, finding
from requant.gate.rules import Differences, Floor, Rule
from requant.gate.several import adjusted
from requant.gate.weighing import Weighed, enough, weigh

Verdict = Literal["promote", "refuse", "not enough evidence"]
DOUBT = 0.05
"""Chance of refusing tonight a model that is no worse; such an error harms nobody for long."""


@dataclass(frozen=True)
class Decision:
    """The verdict and what it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """What decided, in words; never empty."""
    findings: tuple[Finding, ...]
    alpha: float
    units_needed: int | None
    """Units of each task that would decide, where evidence is missing; None: no number would."""

    @property
    def outlook(self) -> str:
        """How many documents would decide; empty where that is not known."""
        if self.units_needed is None:
            return ""
        return f"about {self.units_needed} documents of each task would decide"


def decide(
    rules: Sequence[tuple[Rule, Differences]],
    alpha: float,
    floors: Sequence[Floor] = (),
    doubt: float = DOUBT,
    *,
    gain: bool = True,
) -> Decision:
    """Decide whether a candidate is promoted, refused, or needs more evidence.

    Promoted is what is shown, with chance `alpha` of an error, to lose less than its margin on
    every guard, to leave the units of every guard whole, and to gain on at least one target. All
    guards must pass, so their number needs no correction (intersection-union test, Berger 1982):
    whichever of them a harmful candidate harms passes with a chance of at most alpha. Over targets,
    of which one suffices, e-values are adjusted, and so they are over guards where one being worse
    refuses.

    Args:
        rules: What is asked, and of which differences.
        alpha: Chance of promoting what harms, or gains nowhere.
        floors: Scores that must be reached.
        doubt: Chance of refusing what does not harm.
        gain: Whether something must be gained; without, what loses nothing is promoted.

    Raises:
        ConfigError: If alpha or doubt is no chance. An alpha of 0 promotes nothing.
    """
    if not 0 <= alpha < 1:
        raise ConfigError(f"gate: alpha is {alpha:g}; it must be at least 0 and below 1")
    if not 0 < doubt < 1:
        raise ConfigError(f"gate: doubt is {doubt:g}; it must be above 0 and below 1")
    wanted = -math.log(alpha) if alpha else math.inf
    refusing = -math.log(doubt)
    targets = sum(rule.role == "target" for rule, _ in rules)
    weighed = [
        weigh(rule, each, wanted + (math.log(targets) if rule.role == "target" else 0.0))
        for rule, each in rules
    ]
    gains = _gains(rules, weighed)
    harms = _harms(rules, weighed)
    findings = tuple(
        finding(
            rule,
            differences,
            each,
            _state(enough(each, rule, gains[place], wanted), harms[place] >= refusing),
            gains[place],
            harms[place],
            wanted,
        )
        for place, ((rule, differences), each) in enumerate(zip(rules, weighed, strict=True))
    )
    return _verdict(findings, floors, alpha, gain)


def _gains(rules: Sequence[tuple[Rule, Differences]], weighed: Sequence[Weighed]) -> list[float]:
    """Return the evidence of each mean for the candidate, targets adjusted for their number."""
    gains = [each.log_for for each in weighed]
    targets = [place for place, (rule, _) in enumerate(rules) if rule.role == "target"]
    for place, value in zip(targets, adjusted([gains[place] for place in targets]), strict=True):
        gains[place] = value
    return gains


def _harms(rules: Sequence[tuple[Rule, Differences]], weighed: Sequence[Weighed]) -> list[float]:
    """Return the evidence of each task against the candidate, guards adjusted for their number.

    Every target must be hopeless before one refuses, so targets need no adjustment.
    """
    harms = [each.log_against for each in weighed]
    guards = [
        (place, value)
        for place, (rule, _) in enumerate(rules)
        if rule.role == "guard"
        for value in (weighed[place].log_against, weighed[place].tail_against)
        if value is not None
    ]
    for place in {place for place, _ in guards}:
        harms[place] = -math.inf
    for (place, _), value in zip(guards, adjusted([value for _, value in guards]), strict=True):
        harms[place] = max(harms[place], value)
    return harms


def _state(passes: bool, harmed: bool) -> State:
    # Of a target below what is worth having both may be shown: that it is better, and not by much.
    if passes:
        return "shown"
    return "shown worse" if harmed else "open"


def _verdict(
    findings: Sequence[Finding], floors: Sequence[Floor], alpha: float, gain: bool
) -> Decision:
    guards = [each for each in findings if each.role == "guard"]
    targets = [each for each in findings if each.role == "target"]
    against = [
        f"{floor.task}: {figure(floor.mean)} is below its floor of {figure(floor.least)}"
        for floor in floors
        if not floor.mean >= floor.least
    ]
    against += [each.sentence for each in guards if each.state == "shown worse"]
    if targets and all(each.state == "shown worse" for each in targets):
        against += [each.sentence for each in targets]
    if against:
        return Decision("refuse", tuple(against), tuple(findings), alpha, None)
    better = [each for each in targets if each.state == "shown"]
    undecided = [each for each in guards if each.state == "open"]
    undecided += [] if better else [each for each in targets if each.state == "open"]
    missing = [each.sentence for each in undecided]
    missing += ["there is no guard to judge by"] * (not guards)
    missing += ["there is no target to judge by"] * (gain and not targets)
    if alpha == 0:
        missing = ["alpha is 0: nothing can be shown by this test"]
    if not missing:
        reasons = tuple(each.sentence for each in (*better, *guards))
        return Decision("promote", reasons, tuple(findings), alpha, None)
    units = _units(guards, targets, gain)
    return Decision("not enough evidence", tuple(missing), tuple(findings), alpha, units)


def _units(guards: Sequence[Finding], targets: Sequence[Finding], gain: bool) -> int | None:
    """Return the units a task at which all guards and a target would pass, None if none would."""
    counts = [each.n if each.state == "shown" else each.units_needed for each in targets]
    target = min((count for count in counts if count is not None), default=None)
    every = [each.n if each.state == "shown" else each.units_needed for each in guards]
    needed = [*every, target] if gain else every
    decided = [count for count in needed if count is not None]
    return max(decided) if guards and len(decided) == len(needed) else None
