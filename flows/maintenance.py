"""Weekly: every artifact verified, garbage collected."""

from pathlib import Path

from prefect import flow, get_run_logger

from requant.errors import ArtifactError
from requant.machine.withheld import withheld
from requant.store import Store
from requant.store.gc import collect
from requant.store.health import examine
from tasks.secrets import hiding, known_secrets
from tasks.servers.folders import keep_private, warn

PATIENCE_SECONDS = 12 * 3600.0
"""A night that is in progress ends first."""


@flow(name="maintenance")
def maintenance(state: Path = Path(".requant"), keep: int | None = None) -> None:
    """Read every byte of every recorded artifact, then delete what nothing refers to.

    Args:
        state: Folder of the store.
        keep: Records used last that are kept per stage; all where it is not given.

    Raises:
        ArtifactError: Naming every artifact whose bytes are wrong, and every document that cannot
            be believed; garbage is collected by then, as far as those let it be known.
    """
    warn(keep_private(state.resolve()))
    with withheld(hiding(known_secrets(state))):
        _maintain(Store(state.resolve()), keep)


def _maintain(store: Store, keep: int | None) -> None:
    health = examine(store, deep=True)
    logger = get_run_logger()
    garbage = collect(store, keep, timeout=PATIENCE_SECONDS, say=logger.info)
    logger.info(f"deleted {garbage.in_words}")
    said = [garbage.doubt] if garbage.doubt else []
    if health.harmed:
        said.append("a night that needs a harmed artifact makes it again")
    # One may have become unreadable since the examination.
    problems = dict.fromkeys((*health.doubtful, *garbage.held_back, *health.harmed))
    if problems:
        raise ArtifactError("\n".join((*said, *problems)))
