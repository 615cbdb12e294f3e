"""The weekly care of the store: what the flow `maintenance` does."""

from requant.errors import ArtifactError
from requant.store import Store, all_records, artifact_of, unreadable_records, verify
from requant.store.gc import collect


def verify_artifacts(store: Store) -> list[str]:
    """Read every byte of every recorded artifact; return what is wrong."""
    problems = [f"{path}: is not a record; delete it" for path in unreadable_records(store)]
    refs = {record.digest: artifact_of(store, record) for record in all_records(store)}
    for ref in refs.values():
        try:
            verify(store, ref)
        except ArtifactError as error:
            problems.append(str(error))
    return problems


def collect_garbage(store: Store, keep: int | None) -> str:
    """Delete what nothing refers to; return what was deleted, in words."""
    garbage = collect(store, keep)
    size = f"{garbage.bytes / 2**20:.1f} MiB"
    return f"deleted {len(garbage.folders)} folders ({size}), {len(garbage.records)} records"
