"""The gate's ledger of a model line: its verdicts, and what chance of error each of them took."""

from dataclasses import asdict

from requant.errors import ArtifactError
from requant.gate import Look
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import Store
from requant.store.locks import locked


def read_looks(store: Store, line: str) -> list[Look]:
    """Return the verdicts of a line, the oldest first.

    Raises:
        ArtifactError: If the ledger cannot be believed: what was spent is not known then.
    """
    path = store.ledger_path(line)
    if not path.exists():
        return []
    try:
        return [Look(**each) for each in read_sealed(store, path)]
    except (ArtifactError, TypeError) as error:
        raise ArtifactError(
            f"{path}: is not as it was written ({error}), so what chance of a harmful promotion is "
            "left this year is not known, and nothing is promoted by itself. Put back a copy of "
            "it; or delete it, which gives the year's chance out anew"
        ) from error


def add_look(store: Store, line: str, look: Look) -> None:
    """Write a verdict down; one that is there already is not written twice.

    Raises:
        ArtifactError: As `read_looks`.
    """
    with locked(store.lock_path(f"ledger-{line}")):
        known = read_looks(store, line)
        if look not in known:
            write_sealed(store, store.ledger_path(line), [asdict(each) for each in (*known, look)])
