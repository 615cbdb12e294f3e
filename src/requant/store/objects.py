"""Publish a folder as an artifact, find it again, and prove that its bytes are still the same."""

import errno
import shutil
import uuid
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.expected import expected
from requant.outside.json_text import INDEX, read_json
from requant.store.durable import sync, write_durably
from requant.store.layout import ArtifactRef, Store
from requant.store.manifest import MANIFEST_NAME, Manifest, describe

FILE_MODE = 0o600
"""Who serves may be another user: `requant.serving` copies what others read."""


def publish(store: Store, kind: str, folder: Path) -> ArtifactRef:
    """Move a finished folder into the store under the digest of its content.

    The manifest is written last and the folder enters `objects/` by one rename, so a crash at any
    moment leaves either the whole artifact or none.

    Args:
        store: Where to.
        kind: What the artifact is: model, adapter, dataset, evaluation.
        folder: The files, on the store's filesystem (below `store.tmp`). Consumed.

    Raises:
        ArtifactError: If the folder is empty or holds a link.
        OSError: If the disk is full; nothing has then entered `objects/`.
    """
    manifest = describe(folder)
    for entry in manifest.files:
        sync(folder / entry.path)
    write_durably(folder / MANIFEST_NAME, canonical_json(manifest.model_dump(mode="json")))
    # Whatever modes libraries gave them: none is in the digest.
    for entry in manifest.files:
        (folder / entry.path).chmod(FILE_MODE)
    ref = store.ref(kind, manifest.digest)
    target = store.object_path(ref.digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        try:
            verify(store, ref)
        except ArtifactError:
            discard(store, target)
        else:
            shutil.rmtree(folder)
            return ref
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        # Another key came to the same bytes in this moment.
        verify(store, ref)
        shutil.rmtree(folder)
    sync(target.parent)
    return ref


def verify(store: Store, ref: ArtifactRef) -> Manifest:
    """Read every byte of an artifact and compare it with its manifest and digest.

    Raises:
        ArtifactError: Naming the first file that is missing, added or altered.
    """
    recorded = _manifest_of(store, ref)
    _compare(store.object_path(ref.digest), recorded, ref.short)
    return recorded


def _compare(folder: Path, recorded: Manifest, short: str) -> None:
    """Read every byte of a folder, and name the first file that a manifest has otherwise."""
    present = describe(folder)
    if present == recorded:
        return
    wanted = {entry.path: entry for entry in recorded.files}
    found = {entry.path: entry for entry in present.files}
    for path in sorted(wanted.keys() | found.keys()):
        if path not in found:
            raise ArtifactError(f"{folder / path}: is missing; its artifact {short} is unusable")
        if path not in wanted:
            raise ArtifactError(f"{folder / path}: was added to artifact {short}; remove it")
        if wanted[path] != found[path]:
            raise ArtifactError(
                f"{folder / path}: was altered: sha256 {found[path].sha256[:12]}, "
                f"expected {wanted[path].sha256[:12]}"
            )
    raise AssertionError("unequal manifests with equal entries")


def verify_to_serve(store: Store, ref: ArtifactRef) -> None:
    """Verify a model that somebody wants to serve.

    Raises:
        ArtifactError: As `verify`, with the way out: nothing makes such a model again by itself.
    """
    try:
        verify(store, ref)
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}. Expected model {ref.short} as it was made; what serves now goes on serving. "
            "`requant run` with the configuration that made it makes a harmed file again, or let "
            "another version serve: `requant promote CONFIG --version N`"
        ) from error


def check_sizes(store: Store, ref: ArtifactRef) -> Manifest:
    """Compare names and sizes with the manifest, without reading the files.

    Raises:
        ArtifactError: Naming the first file that is missing or of another size.
    """
    folder = store.object_path(ref.digest)
    manifest = _manifest_of(store, ref)
    for entry in manifest.files:
        path = folder / entry.path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            found = "is missing" if size is None else f"has {size} bytes"
            raise ArtifactError(f"{path}: {found}, expected {entry.size} bytes")
    return manifest


def verify_unless_untouched(store: Store, ref: ArtifactRef) -> None:
    """Verify an artifact, reading it only once in a process for as long as nobody touches it.

    Prefect looks at a cached result twice. The second look is answered from the inode, size, mtime
    and ctime of every file; any write changes the ctime.

    Raises:
        ArtifactError: As `verify`.
    """
    _verify_touched(store, ref, _signature(store.object_path(ref.digest)))


@lru_cache(maxsize=256)
def _verify_touched(store: Store, ref: ArtifactRef, signature: tuple[object, ...]) -> None:
    verify(store, ref)


def _signature(folder: Path) -> tuple[tuple[str, int, int, int, int], ...]:
    paths = sorted(folder.rglob("*"))
    stats = ((str(path), path.lstat()) for path in paths)
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest.

    Raises:
        ArtifactError: If it is missing or not a manifest.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise ArtifactError(f"{path}: is missing")
    try:
        return Manifest.model_validate(read_json(path, INDEX))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ArtifactError(
            f"{path}: is not a manifest: {field}: {expected(problem)}; a night that needs the "
            "artifact makes it again"
        ) from error


def _manifest_of(store: Store, ref: ArtifactRef) -> Manifest:
    # An import at the top would go in a circle: records are written durably, by this module.
    from requant.store.whereabouts import whereabouts

    folder = store.object_path(ref.digest)
    if not folder.exists():
        raise ArtifactError(f"{folder}: is missing; {whereabouts(store, ref.digest)}")
    manifest = read_manifest(folder)
    if manifest.digest != ref.digest:
        raise ArtifactError(
            f"{folder / MANIFEST_NAME}: was altered: its digest is {manifest.digest}"
        )
    return manifest


def check_copy(folder: Path) -> None:
    """Refuse a copy of an artifact whose files are not those that the manifest beside them lists.

    Args:
        folder: Any; without a manifest nothing is known of it.

    Raises:
        ArtifactError: Naming the first file that is missing, added or altered, and the way out.
    """
    if not (folder / MANIFEST_NAME).exists():
        return
    listed = read_manifest(folder)
    try:
        _compare(folder, listed, listed.digest[:12])
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}. Copy the artifact again, or remove {MANIFEST_NAME} if it was changed on "
            "purpose"
        ) from error


def starts_digest(text: str) -> bool:
    """Tell whether a text may be the start of a digest, long enough to find an artifact by."""
    return len(text) >= 4 and not text.strip("0123456789abcdef")


def find_object(store: Store, prefix: str) -> Path:
    """Return the folder of the one artifact whose digest starts with `prefix`.

    Raises:
        ArtifactError: If none or several do.
    """
    there = store.objects.glob(f"{prefix[:2]}/{prefix}*") if starts_digest(prefix) else ()
    matches = sorted(there)
    if len(matches) != 1:
        names = ", ".join(match.name[:16] for match in matches) or "none"
        raise ArtifactError(
            f"digest {prefix!r}: expected one artifact in {store.objects}, found {names}; "
            "give at least 4 of the hex digits `requant status CONFIG` prints"
        )
    return matches[0]


def discard(store: Store, folder: Path) -> None:
    """Delete a folder of the store so that no reader ever sees half of it."""
    grave = store.tmp / f"discarded-{uuid.uuid4().hex}"
    grave.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(grave)
    shutil.rmtree(grave)
