"""Whether what the store holds is still what was put into it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from requant.errors import ArtifactError
from requant.store.answers import KIND, answer_notes, read_kept
from requant.store.attempts import attempt_files, load_attempt
from requant.store.documents import read_sealed
from requant.store.layout import ArtifactRef, Store
from requant.store.lines import line_files, needed_by_lines, read_line
from requant.store.looks import read_looks
from requant.store.objects import check_sizes, verify
from requant.store.pins import read_pins
from requant.store.records import StageRecord, artifact_of, read_record, read_records
from requant.store.results import agreed_result, key_of, read_result, result_files, result_suffix

Item = TypeVar("Item")


@dataclass(frozen=True)
class Health:
    """What an examination found."""

    artifacts: int
    harmed: tuple[str, ...]
    """What is wrong with artifacts, one sentence each."""
    documents: int
    doubtful: tuple[str, ...]
    """Why some of them cannot be believed, one sentence each, with a way out."""

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong."""
        return (*self.doubtful, *self.harmed)


def examine(
    store: Store,
    *,
    deep: bool,
    watch: Callable[[Sequence[ArtifactRef]], Iterable[ArtifactRef]] = iter,
) -> Health:
    """Check every artifact that is recorded or pinned, and every document of the state folder.

    Documents are records, pins, the gate's ledgers, heads of model lines, Prefect's results, notes
    of deployments, of attempts and of what models answered.

    Args:
        store: The store.
        deep: Read every byte; otherwise names and sizes only.
        watch: Hands the artifacts on one by one, e.g. under a progress bar.
    """
    records, no_records = read_records(store)
    pins, no_pins = read_pins(store)
    refs = {item.digest: artifact_of(store, item) for item in records}
    # What serves is needed also where a forced stage has taken its record for new bytes.
    refs |= {digest: store.ref("model", digest) for digest in pins.values() if digest not in refs}
    of_lines, _ = needed_by_lines(store)
    refs |= {digest: store.ref("dataset", digest) for digest in of_lines if digest not in refs}
    check = verify if deep else check_sizes
    harmed = _refused(lambda ref: check(store, ref), watch(list(refs.values())))
    results, deployments = result_files(store), sorted(store.deployments.glob("[!.]*"))
    attempts, ledgers = attempt_files(store), sorted(store.ledgers.glob("[!.]*"))
    lines = line_files(store)
    answers = answer_notes(store)
    by_key = {record.key: record for record in records}
    others = (
        *_refused(lambda path: _check_result(store, path, by_key), results),
        *_refused(lambda path: _check_deployment(store, path), deployments),
        *_refused(_check_attempt, attempts),
        *_refused(lambda path: read_looks(store, path.stem), ledgers),
        *_refused(lambda path: read_line(store, path.stem), lines),
        *_refused(lambda path: _check_answers(store, path, check), answers),
    )
    return Health(
        artifacts=len(refs),
        harmed=harmed,
        documents=sum(
            len(found)
            for found in (
                *(records, no_records, pins, no_pins),
                *(results, deployments, attempts, ledgers, lines, answers),
            )
        ),
        doubtful=(*no_records, *no_pins, *others),
    )


def _check_result(store: Store, path: Path, records: dict[str, StageRecord]) -> None:
    """Refuse a result that a night would.

    One without a record, or of the folder this store was copied from, no night asks for: it must
    only be one.
    """
    record = records.get(key_of(path))
    try:
        if record is not None and path.name == f"{record.key}{result_suffix(store)}":
            # A stage that was forced beside this may have written another since.
            agreed_result(store, path, read_record(store, record.key) or record)
        else:
            read_result(path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove it: no night believes it") from error


def _check_deployment(store: Store, path: Path) -> None:
    try:
        read_sealed(store, path)
    except FileNotFoundError:
        # A deployment in progress takes it away.
        return
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; `requant deploy CONFIG` deploys what serves again and writes it anew, or "
            "remove it where nothing is deployed"
        ) from error


def _check_answers(store: Store, path: Path, check: Callable[[Store, ArtifactRef], object]) -> None:
    try:
        kept = read_kept(store, path)
    except FileNotFoundError:
        return
    try:
        check(store, store.ref(KIND, kept.digest))
    except ArtifactError as error:
        raise ArtifactError(f"{error}; no night believes these answers, it asks anew") from error


def _check_attempt(path: Path) -> None:
    try:
        load_attempt(path)
    except ArtifactError:
        # Of work that is done it is taken away.
        if os.path.lexists(path):
            raise


def _refused(check: Callable[[Item], object], items: Iterable[Item]) -> tuple[str, ...]:
    """Return why a check refuses items, of those that it does."""
    return tuple(_reasons(check, items))


def _reasons(check: Callable[[Item], object], items: Iterable[Item]) -> Iterator[str]:
    for item in items:
        try:
            check(item)
        except ArtifactError as error:
            yield str(error)
