"""Are the sources of a night there? Asked before every night, since they come and go."""

from collections.abc import Iterator

from requant.collecting.read import require_rows
from requant.config import Config
from requant.errors import RequantError, is_transient
from requant.ledger.index import read_index
from requant.ledger.near import key_threshold
from requant.preflight.problem import Problem
from requant.store import Store, materialise
from requant.store.lines import read_line


def collecting_problems(config: Config) -> Iterator[Problem]:
    """Look for every source of collect_rows, and whether tonight knows the rows of the ledger.

    Which rows are new is not known before they are read.
    """
    if not config.collect_rows.enabled:
        return
    for source in config.collect_rows.sources:
        try:
            require_rows(source)
        except RequantError as error:
            yield Problem("", str(error), may_pass=is_transient(error))
    store = Store(config.state.resolve())
    digest = read_line(store, config.name).ledger
    if digest is not None:
        threshold = key_threshold(config.extend_ledger.near_duplicates)
        read_index(materialise(store, digest), digest, threshold)
