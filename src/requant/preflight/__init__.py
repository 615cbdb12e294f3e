"""The look before the night: everything that can be known without training, all of it at once."""

from collections.abc import Callable, Iterable, Sequence

from requant.config import Config
from requant.errors import ConfigError, RequantError, TransientError, is_transient
from requant.preflight.base import base_problems
from requant.preflight.data import data_problems
from requant.preflight.evaluation import evaluation_problems
from requant.preflight.machine import machine_problems
from requant.preflight.problem import Problem

Check = Callable[[Config], Iterable[Problem]]

CHECKS: tuple[Check, ...] = (machine_problems, base_problems, data_problems, evaluation_problems)


def find_problems(config: Config, more: Sequence[Check] = ()) -> list[Problem]:
    """List why a night of this configuration cannot end well.

    Args:
        config: The whole configuration.
        more: Checks of who calls: of secrets and servers, which the library does not know.
    """
    return [problem for check in (*CHECKS, *more) for problem in _checked(check, config)]


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


def _checked(check: Check, config: Config) -> list[Problem]:
    """Run one check; what it raises is a problem too, and hides none of the others'."""
    found: list[Problem] = []
    try:
        found.extend(check(config))
    except RequantError as error:
        found.append(Problem("", str(error), may_pass=is_transient(error)))
    except Exception as error:
        text = f"the check itself failed ({type(error).__name__}: {error}); report this"
        found.append(Problem(f"preflight.{check.__name__}", text))
    return found


__all__ = ["Problem", "find_problems", "refuse"]
