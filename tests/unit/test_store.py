"""The store believes bytes, not names."""

import multiprocessing
import os
import shutil
import signal
from inspect import signature
from pathlib import Path

import pytest

from requant.errors import ArtifactError
from requant.store import (
    ArtifactRef,
    Store,
    check_copy,
    describe,
    find_object,
    locked,
    publish,
    verify,
)
from requant.store.layout import is_own
from requant.store.locks import acquire, is_held
from requant.store.manifest import MANIFEST_NAME


def draft(store: Store, files: dict[str, bytes], name: str = "draft") -> Path:
    folder = store.tmp / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture
def artifact(store: Store) -> ArtifactRef:
    return publish(store, "model", draft(store, {"a.txt": b"one", "sub/b.bin": b"two" * 1000}))


def test_same_content_has_the_same_digest_and_is_kept_once(
    store: Store, artifact: ArtifactRef
) -> None:
    again = publish(store, "model", draft(store, {"a.txt": b"one", "sub/b.bin": b"two" * 1000}))
    assert again == artifact
    assert len(list(store.objects.glob("*/*"))) == 1
    assert list(store.tmp.iterdir()) == []


def test_a_copy_is_held_to_the_manifest_beside_it(
    store: Store, artifact: ArtifactRef, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.object_path(artifact.digest), copy)
    check_copy(copy)
    (copy / "a.txt").chmod(0o600)
    (copy / "a.txt").write_bytes(b"two")
    with pytest.raises(
        ArtifactError, match=r"copy/a\.txt: was altered: .* Copy the artifact again, "
    ):
        check_copy(copy)
    (copy / MANIFEST_NAME).unlink()
    check_copy(copy)


def test_an_artifact_is_found_by_its_address(store: Store, artifact: ArtifactRef) -> None:
    assert find_object(store, artifact.short) == store.object_path(artifact.digest)


def flip_byte(folder: Path) -> None:
    path = folder / "sub/b.bin"
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)


def flip_byte_and_restore_the_times(folder: Path) -> None:
    times = (folder / "sub/b.bin").stat()
    flip_byte(folder)
    os.utime(folder / "sub/b.bin", ns=(times.st_atime_ns, times.st_mtime_ns))


def remove_file(folder: Path) -> None:
    (folder / "a.txt").unlink()


def add_file(folder: Path) -> None:
    (folder / "c.txt").write_bytes(b"stranger")


def edit_manifest(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b"a.txt", b"z.txt"))


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (flip_byte, r"sub/b.bin: was altered: sha256"),
        (flip_byte_and_restore_the_times, r"sub/b.bin: was altered"),
        (remove_file, r"a.txt: is missing"),
        (add_file, r"c.txt: was added"),
        (edit_manifest, r"manifest.json: was altered"),
        (remove_manifest, r"manifest.json: is missing"),
    ],
)
def test_a_harmed_artifact_is_refused_with_the_file(
    store: Store, artifact: ArtifactRef, harm, text: str
) -> None:
    verify(store, artifact)
    harm(store.object_path(artifact.digest))
    with pytest.raises(ArtifactError, match=text):
        verify(store, artifact)


def test_publishing_again_heals_a_harmed_artifact(store: Store, artifact: ArtifactRef) -> None:
    flip_byte(store.object_path(artifact.digest))
    publish(store, "model", draft(store, {"a.txt": b"one", "sub/b.bin": b"two" * 1000}))
    verify(store, artifact)


def test_links_and_empty_folders_are_no_artifacts(store: Store) -> None:
    empty = store.tmp / "empty"
    empty.mkdir(parents=True)
    with pytest.raises(ArtifactError, match="holds no file"):
        describe(empty)
    (empty / "link").symlink_to("/etc/hosts")
    with pytest.raises(ArtifactError, match="is a link or special file"):
        publish(store, "model", empty)


def test_a_digest_that_is_not_unique_or_unknown_is_refused(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"'abc'.*expected one artifact.*none"):
        find_object(store, "abc")


def hold(path: Path, ready) -> None:
    with locked(path):
        ready.set()
        signal.pause()


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    holder = context.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.wait(20)
    assert is_held(path)
    assert acquire(path, timeout=0.1) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not is_held(path)


def test_every_path_of_a_state_folder_is_known_to_be_its_own() -> None:
    store = Store(Path("state"))
    named = [
        getattr(store, name) for name in vars(Store) if not name.startswith("_") and name != "ref"
    ]
    paths = [
        item(*["x"] * len(signature(item).parameters)) if callable(item) else item for item in named
    ]
    assert len(paths) > 20
    assert all(is_own(path.relative_to(store.root).parts[0]) for path in paths)
    for suffix in ("", "-journal", "-wal", "-shm", ".lock"):
        assert is_own(f"mlflow.db{suffix}")
    assert is_own(".mlflow.db.migrating")
    assert not is_own("served")
