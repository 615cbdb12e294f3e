"""The manifest: path, size and sha256 of every file of an artifact."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from requant.canonical import digest_of
from requant.errors import ArtifactError

MANIFEST_NAME = "manifest.json"

# Large enough that the interpreter is rarely entered (hashlib drops the GIL above 2 KiB), small
# enough to stay in the L2 cache between the read and the hash.
BLOCK_BYTES = 1 << 20


class ManifestEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """All files of an artifact, sorted by path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[ManifestEntry, ...]

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of this manifest: the artifact's identity."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)


def hash_file(path: Path) -> str:
    """Return the sha256 (64 hex digits) of a file's bytes."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def describe(folder: Path) -> Manifest:
    """Hash every file below `folder`, one file per core at a time.

    Raises:
        ArtifactError: On a symbolic link or a special file, whose content would not travel, and on
            an empty folder.
    """
    paths = _files_below(folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = pool.map(hash_file, paths)
        entries = tuple(
            ManifestEntry(
                path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest
            )
            for path, digest in zip(paths, digests, strict=True)
        )
    if not entries:
        raise ArtifactError(f"{folder}: holds no file; an artifact needs at least one")
    return Manifest(files=entries)


def _files_below(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ArtifactError(
                    f"{path}: is a link or special file; artifacts hold plain files"
                )
        paths += [
            Path(parent, name)
            for name in files
            if not (name == MANIFEST_NAME and Path(parent) == folder)
        ]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())
