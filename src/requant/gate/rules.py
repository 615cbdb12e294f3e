"""What is compared, and what is asked of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from requant.errors import ConfigError, ContractError

Kind = Literal["log_likelihood", "probability", "accuracy", "own"]
Role = Literal["guard", "target"]

WITHIN_ONE: frozenset[Kind] = frozenset({"probability", "accuracy"})
"""Kinds of scores from 0 to 1: no difference of theirs is beyond 1."""


@dataclass(frozen=True)
class Differences:
    """Candidate's minus reference's score, of one task; higher is better."""

    task: str
    reference: str
    """What the candidate is compared with: champion, base, anchor."""
    kind: Kind
    values: Sequence[float]
    """One a unit, in the seeded order in which units are looked at. A unit is the documents that
    were cut from one row, its value the mean of theirs; a document alone is its own unit."""
    flips: tuple[int, int] | None = None
    """Documents that went from right to wrong, and from wrong to right; None if no accuracy."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a difference of such scores.

        Raises:
            ContractError: With task, place and value.
        """
        for place, value in enumerate(self.values):
            if not math.isfinite(value) or (self.kind in WITHIN_ONE and abs(value) > 1):
                raise ContractError(
                    f"gate: {self.task} against the {self.reference}: the difference of unit "
                    f"{place} is {value}; differences of kind {self.kind} are "
                    f"{'from -1 to 1' if self.kind in WITHIN_ONE else 'finite'}; look at what "
                    "both models answered there, and evaluate again"
                )


@dataclass(frozen=True)
class Rule:
    """What is asked of one task against one reference, in the unit of its scores."""

    role: Role
    margin: float
    """What a guard may lose on average. A target has none: it must gain."""
    reach: float
    """What one unit counts at most, either way: no outlier hides the others."""
    worth: float = 0.0
    """The smallest gain of a target that is worth having."""
    broken_share: float = 0.05
    """Share of a guard's units that must not lose more than `reach`."""
    tails: bool = True
    """Whether broken units are looked for: some scores lose that much where nothing broke."""

    def __post_init__(self) -> None:
        """Refuse a rule that nothing could meet or miss.

        Raises:
            ConfigError: With field, value and what it must be.
        """
        least = self.worth if self.role == "target" else self.margin
        for field, value, holds, wanted in (
            ("margin", self.margin, self.margin > 0 or self.role == "target", "above 0"),
            ("worth", self.worth, self.worth >= 0, "at least 0"),
            ("reach", self.reach, least < self.reach < math.inf, f"finite and above {least:g}"),
            ("broken_share", self.broken_share, 0 < self.broken_share < 1, "between 0 and 1"),
        ):
            if not holds:
                raise ConfigError(
                    f"gate: {field} of a {self.role} is {value:g}; it must be {wanted}"
                )

    @property
    def null(self) -> float:
        """Mean at or below which a candidate must not pass."""
        return -self.margin if self.role == "guard" else 0.0

    @property
    def hoped(self) -> float:
        """Mean of which to be surely below is a reason to refuse."""
        return -self.margin if self.role == "guard" else self.worth

    def looks_for_broken(self, kind: Kind) -> bool:
        """Tell whether units can lose more than is counted of them, and must not."""
        return self.tails and self.role == "guard" and not (kind in WITHIN_ONE and self.reach >= 1)


@dataclass(frozen=True)
class Floor:
    """A score that the candidate itself must reach; no test, its mean is taken as it is."""

    task: str
    mean: float
    """The candidate's mean score; higher is better."""
    least: float
