"""A state folder is for its owner alone, whoever writes what into it with whatever umask."""

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from requant.config.operations import CopyAction
from requant.errors import ConfigError
from requant.serving.deploy import act
from requant.serving.release import Release
from requant.store import Store, locked, publish, verify
from requant.store.durable import write_durably
from requant.store.privacy import OTHERS, close, make_private, open_to_others
from tests.support.users import NOBODY, as_nobody, only_root


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "state"
    assert make_private(folder, "state") == []
    return folder


def open_paths(folder: Path) -> list[Path]:
    """List what others may do anything with, links aside."""
    found = [folder, *folder.rglob("*")]
    return [path for path in found if not path.is_symlink() and path.stat().st_mode & OTHERS]


def test_what_is_made_in_it_is_closed_from_its_first_moment(state: Path) -> None:
    (state / "a/b").mkdir(parents=True)
    (state / "a/b/file").write_text("")
    with closing(sqlite3.connect(state / "a/database")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (c)")
        assert (state / "a/database-wal").exists()
        assert open_paths(state) == []
    os.mkfifo(state / "a/events")
    with locked(state / "locks/one"):
        write_durably(state / "pins/one", b"")
    subprocess.run(["touch", state / "a/of-a-child"], check=True)
    assert open_paths(state) == []
    # Nothing else has other modes than before.
    (state.parent / "beside").write_text("")
    assert stat.S_IMODE((state.parent / "beside").stat().st_mode) == 0o666


def test_one_of_an_earlier_version_is_closed_and_that_is_said_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "objects/ab").mkdir(parents=True)
    (state / "objects/ab/weights").write_text("")
    (state / "program").write_text("")
    (state / "program").chmod(0o755)
    outside = tmp_path / "outside"
    outside.write_text("")
    (state / "link").symlink_to(outside)
    (said,) = make_private(state, "state")
    assert said.startswith(
        f"state: {state} was open to other users of this machine (mode 0777); it"
    )
    assert open_paths(state) == []
    assert stat.S_IMODE((state / "program").stat().st_mode) == 0o700
    assert stat.S_IMODE(outside.stat().st_mode) == 0o666
    (state / "objects/ab/new").write_text("")
    assert open_paths(state) == []
    assert make_private(state, "state") == []


def test_one_that_showed_others_nothing_is_closed_without_a_word(tmp_path: Path) -> None:
    # As PREFECT_HOME=.requant/prefect leaves it in the very first run.
    state = tmp_path / "state"
    (state / "prefect").mkdir(parents=True)
    (state / "prefect").chmod(0o700)
    (state / "prefect/profiles.toml").write_text("")
    assert make_private(state, "state") == []
    assert open_paths(state) == []


def test_what_libraries_open_again_is_closed_after_them(state: Path) -> None:
    (state / "copied").write_text("")
    (state / "copied").chmod(0o644)
    assert close(state, "state") == []
    assert open_paths(state) == []


def test_an_acl_that_lets_others_in_is_replaced(state: Path) -> None:
    # As `setfacl -d -m u::rwx,g::r-x,o::r-x`.
    os.setxattr(
        state,
        "system.posix_acl_default",
        bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000500ffffffff"),
    )
    (state / "before").mkdir()
    assert open_paths(state) == [state / "before"]
    close(state, "state")
    (state / "before/after").write_text("")
    assert open_paths(state) == []


def test_modes_change_no_digest_and_who_serves_reads_the_copy(tmp_path: Path, state: Path) -> None:
    digests = set()
    for mode in (0o600, 0o644, 0o755):
        store = Store(tmp_path / f"state-{mode:o}")
        (store.tmp / "draft/sub").mkdir(parents=True)
        for name in ("weights", "sub/more"):
            (store.tmp / "draft" / name).write_text(name)
            (store.tmp / "draft" / name).chmod(mode)
        ref = publish(store, "model", store.tmp / "draft")
        make_private(store.root, "state")
        verify(store, ref)
        folder = store.object_path(ref.digest)
        assert open_paths(folder) == []
        digests.add(ref.digest)
    assert len(digests) == 1

    action = CopyAction(kind="copy", folder=tmp_path / "served")
    act(action, Release("tiny", 1, ref.digest, ref.uri, {}), folder, lambda name: name)
    served = tmp_path / "served/current"
    assert (served / "sub/more").read_text() == "sub/more"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (served, *served.rglob("*"))}
    # The umask's, and no ACL.
    assert modes == {0o777, 0o666}
    (served / "new").write_text("")
    assert stat.S_IMODE((served / "new").stat().st_mode) == 0o666


@only_root
def test_another_user_gets_nothing_out_of_it(state: Path) -> None:
    (state / "actions").mkdir()
    (state / "actions/record").write_text("secret")
    with as_nobody(state):
        assert state.parent.exists()
        for look in (os.listdir, lambda path: (path / "actions/record").read_text()):
            with pytest.raises(PermissionError):
                look(state)


@only_root
def test_one_of_another_user_is_said_to_be_that(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    (said,) = make_private(state, "state")
    assert said.startswith(f"state: {state} belongs to user nobody, who can read and change all in")


@only_root
def test_files_of_others_in_it_are_said_to_stay(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "objects").mkdir(parents=True)
    (state / "objects/alien").write_text("")
    os.chown(state, NOBODY, NOBODY)
    os.chown(state / "objects", NOBODY, NOBODY)
    with as_nobody(state):
        opened, left = make_private(state, "state")
    assert "was open" in opened
    assert f"1 of the files and folders in {state} are other users'" in left
    assert f"{state}/objects/alien first" in left


def test_a_folder_that_cannot_be_made_is_named_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"^state: {tmp_path}/file/state cannot be made \(Not a"):
        make_private(tmp_path / "file/state", "state")


def test_a_database_elsewhere_is_only_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert open_to_others(path) == ""
    path.write_text("")
    assert open_to_others(path) == f"{path} is open to other users (mode 0666)"
    path.chmod(0o600)
    assert open_to_others(path) == ""


def test_where_there_are_no_acls_the_folder_itself_is_closed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    mount = ["mount", "-t", "ramfs", "none", str(plain)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a filesystem without ACLs")
    try:
        assert make_private(plain / "state", "state") == []
        (plain / "state/file").write_text("")
        assert open_paths(plain / "state") == [plain / "state/file"]
        close(plain / "state", "state")
        assert open_paths(plain / "state") == []
    finally:
        subprocess.run(["umount", plain], check=True)


def test_a_disk_that_keeps_no_modes_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    (state / "file").write_text("")
    # What shared folders of other systems (CIFS, 9p) do with it.
    monkeypatch.setattr(Path, "chmod", lambda *words: None)
    (said,) = make_private(state, "state")
    assert f"files and folders in {state} are open to other users, and their disk keeps no" in said
    assert said.endswith("put the state folder on a disk that keeps modes, such as ext4 or xfs")
