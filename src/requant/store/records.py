"""Records: which stage key produced which artifact, with what figures, when."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from requant.canonical import digest_of
from requant.errors import ArtifactError
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import ArtifactRef, Digest, Store
from requant.store.objects import verify_unless_untouched
from requant.wording import printable

WAY_OUT = (
    "the night that needs its work does it again and writes it anew; else put it back from a copy, "
    "or remove it: what it alone named is garbage then"
)
"""For a record that cannot be believed."""

Curve = tuple[tuple[int, float], ...]


class StageRecord(BaseModel):
    """What one execution of one stage left behind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: Digest
    key_fields: dict[str, Any] = Field(description="what the key is the digest of")
    kind: str
    digest: Digest
    metrics: dict[str, float] = Field(description="final figures; evaluation scores too")
    curves: dict[str, Curve] = Field(description="metric -> ((step, value), ...)")
    started: float = Field(description="seconds since the epoch")
    seconds: float = Field(description="wall time")
    labels: dict[str, str] = Field(description="who asked: pipeline, flow run, MLflow run")


def write_record(store: Store, record: StageRecord) -> None:
    """Write a record durably; it replaces the one with the same key."""
    write_sealed(store, store.record_path(record.key), record.model_dump(mode="json"))


def load_record(store: Store, key: str) -> StageRecord:
    """Return the record of a stage key.

    Raises:
        ArtifactError: If there is none, or it is not as it was written, with the reason.
    """
    path = store.record_path(key)
    try:
        content = read_sealed(store, path)
    except FileNotFoundError as error:
        raise ArtifactError("no record of this key") from error
    try:
        record = StageRecord.model_validate(content)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise ArtifactError(f"{path}: is not a record: {place}") from error
    if record.key != key or digest_of(record.key_fields) != key:
        raise ArtifactError(f"{path}: is the record of other work than its name says")
    if record.key_fields.get("stage") != record.stage:
        raise ArtifactError(f"{path}: its stage is not that of its key")
    return record


def read_record(store: Store, key: str) -> StageRecord | None:
    """Return the record of a stage key, or None where there is none that can be believed."""
    try:
        return load_record(store, key)
    except ArtifactError:
        return None


def verified_record(store: Store, key: str) -> tuple[StageRecord | None, str]:
    """Look a stage key up and believe it only when every byte of its artifact is right.

    Returns:
        The record and an empty text, or None and the reason for the miss.
    """
    try:
        record = load_record(store, key)
        verify_unless_untouched(store, artifact_of(store, record))
    except ArtifactError as error:
        return None, str(error)
    return record, ""


def artifact_of(store: Store, record: StageRecord) -> ArtifactRef:
    """Make the reference of the artifact a record names."""
    return store.ref(record.kind, record.digest)


def touch_record(store: Store, record: StageRecord) -> None:
    """Note that an artifact was used now; what was used last is collected last."""
    store.record_path(record.key).touch()


def last_used(store: Store, record: StageRecord) -> float:
    """Return when an artifact was made or used last, seconds since the epoch."""
    return store.record_path(record.key).stat().st_mtime


def all_records(store: Store) -> list[StageRecord]:
    """Return every readable record, oldest first."""
    return read_records(store)[0]


def read_records(store: Store) -> tuple[list[StageRecord], list[str]]:
    """Return every readable record, oldest first, and why each other file is none, with a way out.

    What an unreadable record named nobody knows.
    """
    found, reasons = [], []
    for path in sorted(store.actions.glob("[!.]*")):
        try:
            if path != store.record_path(path.stem):
                raise ArtifactError(f"{printable(path)}: is not named as a record is")
            found.append(load_record(store, path.stem))
        except ArtifactError as error:
            # A collection beside this one takes records away.
            if os.path.lexists(path):
                reasons.append(f"{error}; {WAY_OUT}")
    return sorted(found, key=lambda record: record.started), reasons
