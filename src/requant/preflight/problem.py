"""One reason why a night cannot end well."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from requant.config import Config
from requant.errors import RequantError, is_transient


@dataclass(frozen=True)
class Problem:
    """A configuration field, and what is wrong with it: value, what was expected, the way out."""

    field: str
    """Empty where the text names it."""
    text: str
    may_pass: bool = False
    """By itself: a server that is away."""

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


Check = Callable[[Config], Iterable[Problem]]


def checked(check: Check, config: Config) -> list[Problem]:
    """Run one check; what it raises is a problem too, and hides none of the others'."""
    found: list[Problem] = []
    try:
        found.extend(check(config))
    except RequantError as error:
        found.append(Problem("", str(error), may_pass=is_transient(error)))
    except MemoryError:
        raise  # of a look, whose memory is bounded: it is told by the piece it was at
    except Exception as error:
        text = f"the check itself failed ({type(error).__name__}: {error}); report this"
        found.append(Problem(f"preflight.{getattr(check, '__name__', 'check')}", text))
    return found
