"""Records: which stage key produced which artifact, with what figures, when."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.store.layout import ArtifactRef, Digest, Store
from requant.store.objects import verify_unless_untouched, write_durably

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
    content = canonical_json(record.model_dump(mode="json"))
    write_durably(store.record_path(record.key), content)


def read_record(store: Store, key: str) -> StageRecord | None:
    """Return the record of a stage key, or None where there is none that can be read."""
    try:
        return StageRecord.model_validate_json(store.record_path(key).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def verified_record(store: Store, key: str) -> tuple[StageRecord | None, str]:
    """Look a stage key up and believe it only when every byte of its artifact is right.

    Returns:
        The record and an empty text, or None and the reason for the miss.
    """
    record = read_record(store, key)
    if record is None:
        return None, "no record of this key"
    try:
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


def unreadable_records(store: Store) -> list[Path]:
    """Return the files among the records that cannot be read: their work will be done again."""
    paths = sorted(store.actions.glob("*.json"))
    return [path for path in paths if read_record(store, path.stem) is None]


def all_records(store: Store) -> list[StageRecord]:
    """Return every readable record, oldest first."""
    records = (read_record(store, path.stem) for path in store.actions.glob("*.json"))
    return sorted((record for record in records if record), key=lambda record: record.started)
