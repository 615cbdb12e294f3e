"""Whether what the store holds is still what was put into it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from requant.errors import ArtifactError
from requant.store.layout import ArtifactRef, Store
from requant.store.objects import check_sizes, verify
from requant.store.pins import pin_files, read_pin
from requant.store.records import all_records, artifact_of, load_record

Item = TypeVar("Item")


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
    harmed = _refused(lambda ref: check(store, ref), watch(refs))
    pins = _refused(lambda path: read_pin(store, path), pin_files(store))
    return Health(len(refs), len(harmed), (*unreadable_records(store), *pins, *harmed))


def unreadable_records(store: Store) -> list[str]:
    """Say which records cannot be believed, and why: their work will be done again."""
    paths = sorted(store.actions.glob("[!.]*"))
    reasons = _refused(lambda path: load_record(store, path.stem), paths)
    return [f"{reason}; delete it" for reason in reasons]


def _refused(check: Callable[[Item], object], items: Iterable[Item]) -> list[str]:
    """Return why a check refuses items, of those that it does."""
    reasons = []
    for item in items:
        try:
            check(item)
        except ArtifactError as error:
            reasons.append(str(error))
    return reasons
