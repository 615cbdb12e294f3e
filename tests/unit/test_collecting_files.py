"""Files, folders and globs are found by name, wherever they lie, and read as far as they can be."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest

from requant.collecting.read import read_source, require_rows
from requant.config.data import Columns
from requant.errors import ConfigError
from tests.support.reads import GOOD, files, fill, ignore, numbered, outcome, reads, remarks, texts

PLACES = [
    "a.jsonl, line 1",
    "a.jsonl, line 2",
    "b/a.jsonl.gz, line 1",
    "b/a.jsonl.gz, line 2",
    "b/deep/c.jsonl.zst, line 1",
    "b/deep/c.jsonl.zst, line 2",
    "c.parquet, row 1",
    "c.parquet, row 2",
]


def test_a_folder_is_read_by_name_and_says_the_same_wherever_it_lies(tmp_path: Path) -> None:
    here = fill(tmp_path / "here")
    found = reads(files(here), tmp_path)
    assert [read.place for read in found] == PLACES
    assert texts(found) == [f"row {number}" for number in range(8)]
    assert {(read.source, read.reason, read.format) for read in found} == {
        ("week", "", "plain text")
    }
    assert found[0].raw == b'{"text": "row 0"}'
    assert found[6].raw == b'{"text":"row 6"}'
    moved = shutil.copytree(here, tmp_path / "other" / "there")
    assert reads(files(moved), tmp_path) == found
    assert reads(files(f"file://{moved}"), tmp_path) == found
    assert remarks(files(here), tmp_path) == [
        "week: 1 files are none of .jsonl, .jsonl.gz, .jsonl.zst, .parquet: README.md"
    ]


def test_a_glob_names_files_below_its_fixed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fill(tmp_path / "here")

    def places(*paths: Path | str) -> list[str]:
        return list(
            dict.fromkeys(read.place.split(",")[0] for read in reads(files(*paths), tmp_path))
        )

    assert places(here / "*.jsonl") == ["a.jsonl"]
    assert places(here / "*") == ["a.jsonl", "c.parquet"]
    assert places(here / "b*" / "*.gz") == ["b/a.jsonl.gz"]
    assert places(here / "**" / "*.jsonl*") == ["a.jsonl", "b/a.jsonl.gz", "b/deep/c.jsonl.zst"]
    assert places(here / "[ab]" / "**" / "c.*") == ["b/deep/c.jsonl.zst"]
    # What two paths name is read once.
    assert places(here / "a.jsonl", here, here / "*") == places(here)
    monkeypatch.chdir(here)
    assert places("b/../a.jsonl") == places("./a.jsonl") == ["a.jsonl"]
    assert places(".") == places(here)
    assert places("../here/b/") == ["a.jsonl.gz", "deep/c.jsonl.zst"]


@pytest.mark.parametrize("name", ["week[1].jsonl", "a::b.jsonl", "*.jsonl", "ü {1}?.jsonl"])
def test_a_file_is_opened_by_its_name_and_no_other(tmp_path: Path, name: str) -> None:
    for number, other in enumerate((name, "week1.jsonl", "a", "ü {1}x.jsonl")):
        (tmp_path / other).write_bytes(numbered(number, number + 1))
    (read,) = reads(files(tmp_path / name), tmp_path)
    assert (read.place, read.row) == (f"{name}, line 1", {"text": "row 0"})


def test_links_are_followed_and_never_in_a_circle(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (elsewhere / "x.jsonl").write_bytes(numbered(0, 1))
    (here / "linked").symlink_to(elsewhere)
    (here / "up").symlink_to(here)
    (elsewhere / "back").symlink_to(here)
    (here / "y.jsonl").symlink_to(elsewhere / "x.jsonl")
    assert [read.place for read in reads(files(here), tmp_path)] == [
        "linked/x.jsonl, line 1",
        "y.jsonl, line 1",
    ]


def test_what_is_no_plain_file_or_vanishes_is_one_bad_read(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "e").mkdir(parents=True)
    (here / "a.jsonl").write_bytes(GOOD)
    os.mkfifo(here / "b.jsonl")
    (here / "c.jsonl").symlink_to(here / "nowhere")
    for name in ("d.jsonl", "e/x.jsonl", "f.jsonl"):
        (here / name).write_bytes(GOOD)
    walk = read_source(files(here), Columns(), tmp_path, ignore)
    found = [next(walk)]
    (here / "d.jsonl").unlink()
    shutil.rmtree(here / "e")
    found += walk
    gone = "cannot be read (No such file or directory); give a file that can be"
    assert outcome(found) == [
        ("a.jsonl, line 1", ""),
        ("b.jsonl", "is no plain file; give one"),
        ("c.jsonl", gone),
        ("d.jsonl", gone),
        ("e/x.jsonl", gone),
        ("f.jsonl, line 1", ""),
    ]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_one_bad_read(tmp_path: Path) -> None:
    # pytest's own folder is closed to others.
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        here = fill(Path(name) / "here")
        assert len(reads(files(here), tmp_path)) == len(PLACES)
        (here / "a.jsonl").chmod(0)
        (here / "b").chmod(0)
        with as_nobody():
            found = reads(files(here), tmp_path)
            require_rows(files(here))
            said = r"/b': is not there, or may not be read \(Permission denied\)"
            with pytest.raises(ConfigError, match=said):
                reads(files(here / "b"), tmp_path)
        (here / "b").chmod(0o700)
    assert outcome(found) == [
        ("a.jsonl", "cannot be read (Permission denied); give a file that can be"),
        ("b", "cannot be listed (Permission denied)"),
        ("c.parquet, row 1", ""),
        ("c.parquet, row 2", ""),
    ]


def test_a_name_that_a_terminal_would_obey_is_escaped(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in (b"a\x1b[31m\nb.jsonl", b"\xff.jsonl"):
        Path(os.fsdecode(os.fsencode(here) + b"/" + name)).write_bytes(b"[\n")
    found = reads(files(here), tmp_path)
    assert [read.place for read in found] == [
        "\\udcff.jsonl, line 1",
        "a\\x1b[31m\\nb.jsonl, line 1",
    ]
    assert all(read.reason.startswith("is not JSON (Expecting value") for read in found)


MISSING: list[tuple[str, str]] = [
    (
        "absent.jsonl",
        r"is not there, or may not be read \(No such file or directory\); correct the",
    ),
    ("absent", r"is not there, or may not be read \(No such file or directory\); correct the"),
    ("absent/*.jsonl", r"is not there, or may not be read"),
    ("here/rows.csv", r"is a file, and does not end in \.jsonl, .*; name one that does, or its"),
    ("memory://absent/", r"is not there, or may not be read"),
    ("gopher9://host/a.jsonl", r"Protocol not known: gopher9; .*available_protocols"),
    ("dropbox://a.jsonl", r"needs a package that is not installed \(.*dropbox.*pip"),
]


@pytest.mark.parametrize(("path", "said"), MISSING)
def test_a_path_that_names_nothing_is_refused_by_field_and_value(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("here/a.jsonl", "here/rows.csv"):
        (tmp_path / name).write_bytes(GOOD)
    expected = rf"^collect_rows\.sources\.week\.paths: '{path.replace('*', '.')}'\: {said}"
    with pytest.raises(ConfigError, match=expected):
        reads(files("here", path), tmp_path)
    with pytest.raises(ConfigError, match=expected):
        require_rows(files(path))


def test_a_folder_without_files_and_a_glob_of_none_have_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "inner").mkdir(parents=True)
    (tmp_path / "here" / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "here" / "inner" / "notes.txt").write_text("What this is.")
    fsspec.filesystem("memory").mkdir("/rotated")
    suffixes = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet"
    empty = ("here/inner", "here/*.parquet", "here/2026-*/**/*.jsonl", "memory://rotated")
    for path in empty:
        require_rows(files(path))
        assert reads(files(path), tmp_path) == []
        assert remarks(files(path), tmp_path)[0] == (
            f"week: no file there ends in {suffixes}: '{path}' has no rows"
        )
    found = reads(files(*empty, "here"), tmp_path)
    assert outcome(found) == [("a.jsonl, line 1", "")]
    assert len(remarks(files(*empty, "here"), tmp_path)) == len(empty) + 1


def test_an_address_is_read_as_a_folder_of_this_machine_is(tmp_path: Path) -> None:
    here = fill(tmp_path / "here")
    (here / "d.parquet").write_bytes(b"no parquet")
    memory = fsspec.filesystem("memory")
    memory.put(str(here), "/nights", recursive=True)
    try:
        for path in ("", "/**", "/**/*.*"):
            far, near = (files(f"{root}{path}") for root in ("memory://nights", here))
            assert reads(far, tmp_path) == reads(near, tmp_path)
        assert list((tmp_path / "cache").iterdir()) == []
        memory.pipe("/nights/a.jsonl", numbered(0, 3))
        (read,) = [read for read in reads(far, tmp_path) if read.place == "a.jsonl, line 3"]
        assert read.row == {"text": "row 2"}
    finally:
        memory.rm("/nights", recursive=True)
