"""The walk of a night's chain: written once, taken by who runs the night and by who plans it."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from requant.config import Config
from requant.config.section import Section
from requant.execution.past_nights import Use
from requant.execution.stage import Stage


class HasStage(Protocol):
    """A task, of which the walk needs the stage alone."""

    @property
    def stage(self) -> Stage: ...


Task_contra = TypeVar("Task_contra", bound=HasStage, contravariant=True)
Result = TypeVar("Result")


class Way(Protocol[Task_contra, Result]):
    """What is done on the walk: with a stage, and to find what past nights left."""

    def off(self, stage: str) -> None:
        """Pass a stage that the configuration switches off."""

    def take(self, task: Task_contra, section: Section, inputs: Mapping[str, Result]) -> Result:
        """Run, or plan, a stage on the outcomes of those before it."""

    def past(self, use: Use, tonight: Result) -> Mapping[str, Result]:
        """Find what past nights left that a stage takes beside tonight's outcome, by its role.

        Adapters are merged with tonight's, held-out rows of datasets are evaluated too.
        """


class Call(Protocol[Task_contra, Result]):
    """One stage of the chain; None where the configuration switches it off."""

    def __call__(self, task: Task_contra, **inputs: Result | None) -> Result | None:
        """Hand the inputs (those that are not None) to the stage by role."""


class Past(Protocol[Result]):
    """What past nights left for a use; empty where there is no such outcome tonight."""

    def __call__(self, use: Use, tonight: Result | None) -> Mapping[str, Result]: ...


def walk(chain: Callable[..., None], config: Config, way: Way[Task_contra, Result]) -> None:
    """Go through the stages of a night one after the other.

    Args:
        chain: `flows.incremental_training.chain`, which says what is handed to whom.
        config: Of the night; a stage that is off hands None on.
        way: Its methods are called in the order of the chain.
    """

    def call(task: Task_contra, **inputs: Result | None) -> Result | None:
        name = task.stage.name
        if not config.runs(name):
            way.off(name)
            return None
        given = {role: result for role, result in inputs.items() if result is not None}
        return way.take(task, getattr(config, name), given)

    def past(use: Use, tonight: Result | None) -> Mapping[str, Result]:
        return {} if tonight is None else way.past(use, tonight)

    chain(config, call, past)
