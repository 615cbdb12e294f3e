"""Are the sources of a night there? Asked before every night, since they come and go."""

from collections.abc import Iterator

from requant.collecting.read import require_rows
from requant.config import Config
from requant.errors import RequantError, is_transient
from requant.preflight.problem import Problem


def collecting_problems(config: Config) -> Iterator[Problem]:
    """Look for every source of collect_rows; which of its rows are new is not known before."""
    for source in config.collect_rows.sources if config.collect_rows.enabled else ():
        try:
            require_rows(source)
        except RequantError as error:
            yield Problem("", str(error), may_pass=is_transient(error))
