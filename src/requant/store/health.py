"""Whether what the store holds is still what was put into it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from requant.errors import ArtifactError
from requant.store.gc import broken_pins
from requant.store.layout import ArtifactRef, Store
from requant.store.objects import check_sizes, verify
from requant.store.records import all_records, artifact_of, unreadable_records


@dataclass(frozen=True)
class Health:
    """What an examination found."""

    artifacts: int
    harmed: int
    """How many artifacts are harmed."""
    problems: tuple[str, ...]
    """What is wrong with artifacts, records and pins, one sentence each."""


def examine(
    store: Store,
    *,
    deep: bool,
    watch: Callable[[Sequence[ArtifactRef]], Iterable[ArtifactRef]] = iter,
) -> Health:
    """Check every recorded artifact against its manifest, every record and every pin.

    Args:
        store: The store.
        deep: Read every byte; otherwise names and sizes only.
        watch: Hands the artifacts on one by one, e.g. under a progress bar.
    """
    check = verify if deep else check_sizes
    refs = list({item.digest: artifact_of(store, item) for item in all_records(store)}.values())
    harmed = []
    for ref in watch(refs):
        try:
            check(store, ref)
        except ArtifactError as error:
            harmed.append(str(error))
    documents = (*unreadable_records(store), *broken_pins(store))
    return Health(len(refs), len(harmed), (*documents, *harmed))
