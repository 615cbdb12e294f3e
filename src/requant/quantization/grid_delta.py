"""The delta of a reversible night: what turns its base into the model that ships, and back.

delta.json            what it belongs to: sha256 of every file of base and shipped model; counts
ternary.safetensors   `numbers` and `stayed`, see `requant.quantization.grid_moves.Moves`
before/, after/       files that are no weights and differ, such as the model card
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from requant.canonical import canonical_json, digest_of
from requant.errors import ArtifactError, ConfigError, ContractError, ParityError
from requant.expected import expected
from requant.models.headers import weight_files
from requant.models.new_folder import new_folder, refuse_used
from requant.outside.json_text import read_object
from requant.quantization.grid_moves import Counts, Moves, move, move_back
from requant.store.manifest import MANIFEST_NAME, hash_file

if TYPE_CHECKING:
    import torch

DELTA = "delta"
"""Folder of the delta inside the model that ships."""
RECORD, NUMBERS = "delta.json", "ternary.safetensors"
BEFORE, AFTER = "before", "after"
Side = Literal["base", "shipped"]


def _plain(name: str) -> str:
    """Refuse the name of a file that lies elsewhere."""
    if name in {"", ".", "..", MANIFEST_NAME} or set(name) & set("/\\\0"):
        raise ValueError("expected the names of files in the folder itself")
    return name


Digests = dict[
    Annotated[str, AfterValidator(_plain)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
]


class Record(BaseModel):
    """Content of delta.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    bits: Literal[2, 3, 4, 8]
    rank: int = Field(ge=1, le=1024)
    omega: int = Field(ge=0, le=1023)
    modules: tuple[str, ...]
    weights: int
    """Of the layers that were moved."""
    changed: int
    clamped: int
    numbers: str
    """sha256 of ternary.safetensors."""
    base: Digests
    """File to sha256."""
    shipped: Digests


def write_delta(
    base: Path, shipped: Path, moves: Moves, counts: Counts, stayed: "torch.Tensor"
) -> int:
    """Write the delta into a model that is complete.

    Args:
        base: GPTQ folder.
        shipped: What `move` and others wrote; gets the folder `DELTA`.
        moves: Update of the codes.
        counts: From `move`.
        stayed: From `move`.

    Returns:
        Bytes of the delta.
    """
    from safetensors.torch import save_file

    folder = shipped / DELTA
    folder.mkdir()
    weights = {path.name for path in weight_files(base)}
    ours, theirs = digests(base), digests(shipped)
    for source, files, others, name in (
        (base, ours, theirs, BEFORE),
        (shipped, theirs, ours, AFTER),
    ):
        for file in sorted(files.keys() - weights):
            if files[file] != others.get(file):
                (folder / name).mkdir(exist_ok=True)
                shutil.copyfile(source / file, folder / name / file)
    save_file({"numbers": moves.numbers, "stayed": stayed}, folder / NUMBERS)
    record = Record(
        bits=moves.bits,
        rank=moves.rank,
        omega=moves.omega,
        modules=moves.modules,
        weights=counts.weights,
        changed=counts.changed,
        clamped=counts.clamped,
        numbers=hash_file(folder / NUMBERS),
        base=ours,
        shipped=theirs,
    )
    (folder / RECORD).write_bytes(canonical_json(record.model_dump(mode="json")))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_delta(folder: Path) -> tuple[Record, Moves]:
    """Read a delta that may come from anywhere.

    Raises:
        ConfigError: If there is none.
        ArtifactError: If it was changed, or is no delta.
    """
    from safetensors.torch import load_file

    path = folder / RECORD
    if not path.is_file():
        raise ConfigError(f"--delta {folder}: has no {RECORD}; give the folder {DELTA} of a model")
    try:
        record = Record.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path}: {field}: {expected(first)}; copy the delta anew") from None
    numbers = folder / NUMBERS
    there = hash_file(numbers) if numbers.is_file() else "no such file"
    if there != record.numbers:
        raise ArtifactError(_differs(numbers, there, record.numbers) + "; copy the delta anew")
    tensors = load_file(numbers)
    if set(tensors) != {"numbers", "stayed"}:
        raise ArtifactError(f"{numbers}: holds {sorted(tensors)}; copy the delta anew")
    flat = {name: tensor.flatten() for name, tensor in tensors.items()}
    return record, Moves(record.bits, record.rank, record.omega, record.modules, **flat)


def undo(model: Path, delta: Path, out: Path) -> Record:
    """Give back the base that a delta was trained on, every file with the sha256 it had.

    Args:
        model: The model that shipped.
        delta: Its delta.
        out: New folder.

    Raises:
        ConfigError: If a folder is missing, or `out` holds something.
        ContractError: If the model is not the one the delta belongs to, naming file and digests.
        ArtifactError: As `read_delta`.
        ParityError: If a file comes out otherwise than it was; nothing is left then.
    """
    return _turned(model, delta, out, "shipped")


def redo(base: Path, delta: Path, out: Path) -> Record:
    """Make the model that shipped of its base, every file with the sha256 it had; see `undo`."""
    return _turned(base, delta, out, "base")


def _turned(source: Path, delta: Path, out: Path, given: Side) -> Record:
    if not source.is_dir():
        raise ConfigError(f"{source}: is no folder; give a GPTQ model")
    refuse_used(out)
    record, moves = read_delta(delta)
    back = given == "shipped"
    before, after = (record.shipped, record.base) if back else (record.base, record.shipped)
    _check_given(source, delta, before, given)
    with new_folder(out) as draft:
        weights = {path.name for path in weight_files(source)}
        for name in before.keys() & after.keys() - weights:
            shutil.copyfile(source / name, draft / name)
        if back:
            move_back(source, draft, moves)
        else:
            move(source, draft, moves)
            shutil.copytree(delta, draft / DELTA)
        for path in sorted((delta / (BEFORE if back else AFTER)).glob("*")):
            if path.is_file():
                shutil.copyfile(path, draft / path.name)
        found = digests(draft)
        if wrong := [name for name in after | found if found.get(name) != after.get(name)]:
            raise ParityError(
                _differs(draft / wrong[0], found.get(wrong[0]), after.get(wrong[0]))
                + f"; {len(wrong)} files in all: copy the delta anew"
            )
    return record


def _check_given(source: Path, delta: Path, wanted: Mapping[str, str], given: Side) -> None:
    """Refuse a model that the delta does not belong to."""
    for name, digest in sorted(wanted.items()):
        path = source / name
        there = hash_file(path) if path.is_file() else None
        if there != digest:
            what = "the model that shipped" if given == "shipped" else "its base"
            raise ContractError(
                _differs(path, there, digest) + f" as {delta} records it; give {what} with this "
                "delta"
            )


def copy_small_files(base: Path, out: Path) -> None:
    """Copy every file of a model that is no weights, byte for byte; its notes too."""
    weights = {path.name for path in weight_files(base)}
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name not in weights | {MANIFEST_NAME}:
            shutil.copyfile(path, out / path.name)


def digests(folder: Path) -> Digests:
    """Return the sha256 of each file of a model's folder; the list of an artifact's files aside."""
    return {
        path.name: hash_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME
    }


def folder_digest(files: Mapping[str, str]) -> str:
    """Return one sha256 of a model, of those of its files."""
    return digest_of(dict(files))


def _differs(path: Path, found: Any, wanted: Any) -> str:
    said = f"sha256 {found}" if found and len(found) == 64 else "no such file"
    return f"{path}: {said}, expected {wanted or 'no such file'}"
