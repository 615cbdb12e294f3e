"""evaluate.gate: what must be shown of a model before it serves (docs/gate.md)."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from requant.config.given_names import TaskName, TaskNames, each_once
from requant.config.section import Positive, Relative, Section
from requant.config.task_names import CHOICES, PERPLEXITIES

Tasks = Annotated[tuple[TaskName, ...], Field(min_length=1), AfterValidator(each_once)]

MOST_TESTS = 24 * 366
"""Tests of a line that is tested every hour; with each more a night must bring more evidence."""


class Gate(Section):
    """Held against the champion and the anchor of the line; a first night against its base."""

    guard: Tasks | None = Field(
        None, description="tasks that must not lose their margin; null: all that are generated"
    )
    target: TaskNames | None = Field(
        None,
        description="tasks of which one must gain; null: those of tonight's held-out rows; []: "
        "none must, what loses nothing serves",
    )
    margin: Relative = Field(
        0.02,
        le=1.0,
        description="nats a byte that a guard may lose on average: 0.02 is 2% of its byte "
        "perplexity",
    )
    accuracy_margin: float = Field(
        0.02, gt=0.0, lt=1.0, description="share of documents, of tasks without likelihoods"
    )
    anchor_margins: float = Field(
        3.0, ge=1.0, description="margins that may be lost against the anchor in all nights"
    )
    first_margins: float = Field(
        3.0,
        ge=1.0,
        description="margins that a first night may lose against its 16-bit base: to round to 4 "
        "bits costs some by itself",
    )
    broken_share: float = Field(
        0.05,
        gt=0.0,
        lt=1.0,
        description="share of documents that must not lose ten margins; not asked of the choice "
        "beside heldout_perplexity",
    )
    floors: dict[TaskName, float] = Field(
        {},
        description="task -> least mean: share of documents that are right, nats a byte (below 0) "
        "of a perplexity",
    )
    harm_a_year: float = Field(
        0.05, gt=0.0, lt=1.0, description="chance of any harmful promotion in 365 days"
    )
    tests_a_year: Positive = Field(
        365, le=MOST_TESTS, description="nights that share it; more get nothing"
    )

    @property
    def alpha(self) -> float:
        """Chance of an error that one night may take."""
        return self.harm_a_year / self.tests_a_year

    @model_validator(mode="after")
    def _can_be_shown(self) -> "Gate":
        # One document of an accuracy counts up to 1, and a margin must be less than that.
        most = max(self.anchor_margins, self.first_margins) * self.accuracy_margin
        if most >= 1:
            raise ValueError(
                f"accuracy_margin={self.accuracy_margin:g} times the greater of anchor_margins="
                f"{self.anchor_margins:g} and first_margins={self.first_margins:g} is {most:g}; "
                "nobody could lose more than all documents: it must stay below 1"
            )
        for task, floor in self.floors.items():
            if (task in PERPLEXITIES and floor >= 0) or (task in CHOICES and floor > 1):
                of = "nats a byte, below 0" if task in PERPLEXITIES else "a share, at most 1"
                raise ValueError(
                    f"floors.{task}: {floor:g} is more than any model reaches; give {of}"
                )
        return self
