"""Are the sources of a night there? Asked before every night, since they come and go."""

from collections.abc import Callable, Iterator
from functools import partial

from requant.collecting.read import require_rows
from requant.config import Config
from requant.errors import RequantError, is_transient
from requant.ledger.index import read_index
from requant.ledger.near import key_threshold
from requant.preflight.problem import Problem
from requant.stages.extend_ledger import evaluation_text
from requant.store import Store, materialise
from requant.store.lines import read_line


def collecting_problems(config: Config) -> Iterator[Problem]:
    """Look for what collect_rows and extend_ledger read; which rows are new the night will see."""
    if not config.collect_rows.enabled:
        return
    looks: list[Callable[[], object]] = [
        *(partial(require_rows, source) for source in config.collect_rows.sources),
        partial(evaluation_text, config.extend_ledger),
        partial(_require_known_keys, config),
    ]
    for look in looks:
        try:
            look()
        except RequantError as error:
            yield Problem("", str(error), may_pass=is_transient(error))


def _require_known_keys(config: Config) -> None:
    """Refuse a night that would not know the rows of the ledger again."""
    store = Store(config.state.resolve())
    digest = read_line(store, config.name).ledger
    if digest is not None:
        threshold = key_threshold(config.extend_ledger.near_duplicates)
        read_index(materialise(store, digest), digest, threshold)
