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
        ArtifactError: Naming every artifact whose bytes are wrong; garbage is collected by then.
    """
    warn(keep_private(state.resolve()))
    with withheld(hiding(known_secrets(state))):
        _maintain(Store(state.resolve()), keep)


def _maintain(store: Store, keep: int | None) -> None:
    problems = examine(store, deep=True).problems
    logger = get_run_logger()
    garbage = collect(store, keep, timeout=PATIENCE_SECONDS, say=logger.info)
    logger.info(f"deleted {garbage.in_words}")
    if problems:
        raise ArtifactError("\n".join([*problems, "a night that needs it makes it again"]))
