"""The look before the night: everything that can be known without training, all of it at once."""

from collections.abc import Sequence

from requant.config import Config
from requant.errors import ConfigError, TransientError
from requant.preflight.collecting import collecting_problems
from requant.preflight.evaluation import evaluation_problems
from requant.preflight.machine import machine_problems
from requant.preflight.outside import outside_problems
from requant.preflight.problem import Check, Problem, checked

CHECKS: tuple[Check, ...] = (
    machine_problems,
    outside_problems,
    collecting_problems,
    evaluation_problems,
)


def find_problems(config: Config, more: Sequence[Check] = ()) -> list[Problem]:
    """List why a night of this configuration cannot end well.

    Args:
        config: The whole configuration.
        more: Checks of who calls: of secrets and servers, which the library does not know.
    """
    return [problem for check in (*CHECKS, *more) for problem in checked(check, config)]


def refuse(problems: Sequence[Problem]) -> None:
    """Raise all problems as one error; nothing where there is none.

    Raises:
        TransientError: If each of them may pass by itself.
        ConfigError: Otherwise.
    """
    if not problems:
        return
    lines = "\n".join(f"  {problem}" for problem in problems)
    text = f"preflight: the night cannot end well ({len(problems)} found):\n{lines}"
    if all(problem.may_pass for problem in problems):
        raise TransientError(text)
    raise ConfigError(text)


__all__ = ["Problem", "find_problems", "refuse"]
