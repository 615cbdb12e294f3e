"""Results: what Prefect keeps of a stage's task, believed only where the store says the same.

A result file names the class that reads it (Prefect would load a pickle where it says so), a key,
and an artifact anywhere. So it is parsed as plain JSON and compared with the record of its key.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from requant.canonical import digest_of
from requant.errors import ArtifactError
from requant.outside.files import read_plain
from requant.outside.json_text import Bounds, parse_json
from requant.store.layout import ArtifactRef, Store
from requant.store.records import StageRecord, artifact_of
from requant.wording import printable

RESULT = Bounds(size=1 << 20, entries=1000)
SERIALIZER: Final = "requant-verified-json"
"""Name of what writes and reads results, in each of them."""


class StageResult(BaseModel):
    """What a stage's task returns and Prefect persists: a few hundred bytes of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    artifact: ArtifactRef


class _Reader(BaseModel):
    """How a file says it is read: as requant writes it, or as Prefect's JSON of earlier versions.

    Nothing is read by what stands here; another name in it shows that somebody else wrote it.
    """

    type: Literal["requant-verified-json", "json"]
    jsonlib: Literal["json"] = "json"
    object_decoder: Literal["prefect.serializers.prefect_json_object_decoder"] | None = None


class _Metadata(BaseModel):
    serializer: _Reader


class _ResultFile(BaseModel):
    metadata: _Metadata
    result: str


def result_of(store: Store, record: StageRecord) -> StageResult:
    """Return what a stage's task says of work that is recorded."""
    return StageResult(stage=record.stage, key=record.key, artifact=artifact_of(store, record))


def result_suffix(store: Store) -> str:
    """Return what follows the stage key in the names of the results a store reads.

    A result names the folder its artifact lies in: a state folder that was moved or copied must
    look for the artifact in itself, not where it came from.
    """
    return f"-{digest_of(str(store.root.resolve()))[:8]}"


def result_files(store: Store) -> list[Path]:
    """List the files of results; drafts, which begin with a dot, are none."""
    return sorted(store.results_path().glob("[!.]*"))


def key_of(file: Path) -> str:
    """Return the stage key that a result is named by."""
    return file.name.partition("-")[0]


def read_result(file: Path) -> StageResult:
    """Return what a result file says, whether or not it is so.

    Raises:
        ArtifactError: If it is not as requant writes it.
    """
    try:
        content = _ResultFile.model_validate(parse_json(read_plain(file, RESULT.size), RESULT))
        told = parse_json(content.result, RESULT)
        # Earlier versions named the class.
        if isinstance(told, dict) and told.keys() == {"__class__", "data"}:
            told = told["data"]
        return StageResult.model_validate(told)
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{printable(file)}: is not a stage's result") from error


def agreed_result(store: Store, file: Path, record: StageRecord) -> StageResult:
    """Return what a result file says, if the record of its key says the same.

    Raises:
        ArtifactError: If it does not, or as `read_result`.
    """
    told = read_result(file)
    if told != result_of(store, record):
        raise ArtifactError(f"{printable(file)}: says something else than the record of its key")
    return told
