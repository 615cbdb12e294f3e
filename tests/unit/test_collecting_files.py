"""Whatever lies in files is read: the good rows, and of the bad ones line and reason."""

import gzip
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from requant.collecting.listing import left_out
from requant.collecting.read import Read, read_source, source_digests
from requant.config.data import Columns
from requant.data import lines
from requant.errors import ConfigError
from tests.support.reads import GOOD, PAIR, files, outcome, reads


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


def numbered(first: int, last: int) -> bytes:
    return b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(first, last))


def texts(found: list[Read]) -> list[str]:
    return [read.row["text"] for read in found if read.row is not None]


def fill(folder: Path) -> Path:
    """Put a file of each kind, links, and what is no row, into a folder."""
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(numbered(0, 2))
    (folder / "b" / "a.jsonl.gz").write_bytes(gzip.compress(numbered(2, 4), mtime=0))
    (folder / "b" / "deep" / "c.jsonl.zst").write_bytes(zst(numbered(4, 6)))
    parquet.write_table(pa.table({"text": ["row 6", "row 7"]}), folder / "c.parquet")
    (folder / ".c.jsonl.part").write_bytes(b"half a")
    (folder / ".d.jsonl").write_bytes(b"half a")
    (folder / "README.md").write_text("What this is.")
    return folder


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
    digest = source_digests([files(here)])
    assert digest == source_digests([files(moved)]) == source_digests([files(f"file://{moved}")])
    (moved / "a.jsonl").write_bytes(numbered(1, 3))
    assert source_digests([files(moved)]) != digest
    assert left_out(files(here)) == (
        "week: 1 files are none of .jsonl, .jsonl.gz, .jsonl.zst, .parquet: README.md"
    )


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


SURROGATE = json.dumps({"text": "a\ud800"}).encode()
DEEP = b'{"text": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"
BAD: dict[bytes, str] = {
    b'{"messages": [': 'is not JSON (Expecting value: line 1 column 15 (char 14)): \'{"messages"',
    b"\xff\xfe{}": "is not JSON ('utf-8' codec can't decode byte 0xff in position 0",
    b'{"text": NaN}': "is not JSON (NaN is no number of JSON)",
    b'{"text": "a", "text": "b"}': "is not JSON ('text' is given twice in one object)",
    b'{"text": "a", "n": %s}' % (b"9" * 5000): "is not JSON (a whole number of 5000 digits",
    DEEP: "is not JSON (has more than 64 levels of lists and objects)",
    b'["a"]': "is ['a']; expected an object with named columns",
    b"null": "is None; expected an object with named columns",
    b'{"texts": "a"}': "has no column 'messages', nor those of another format (found ['texts'])",
    b'{"text": " "}': "text is ' '; expected non-empty text",
    b'{"messages": [{"role": "user", "content": "a"}]}': "the last message is by 'user'",
    b'{"messages": [{"role": "robot", "content": "a"}]}': "messages[0].role is 'robot'; expected",
    SURROGATE: "text: holds '\\ud800' at character 1, half of a surrogate pair",
    b'{"\x1b[31m": 1}': "is not JSON (Invalid control character at: line 1 column 3",
}


@pytest.mark.parametrize("packed", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_bad_line_is_one_bad_read_and_all_others_are_read(tmp_path: Path, packed: str) -> None:
    content = b"".join(GOOD + line + b"\n" for line in BAD) + GOOD
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zst}[packed]
    path = tmp_path / f"night{packed}"
    path.write_bytes(pack(content))
    found = reads(files(path), tmp_path)
    assert [read.place for read in found] == [
        f"night{packed}, line {number + 1}" for number in range(2 * len(BAD) + 1)
    ]
    assert all(read.row == PAIR and not read.reason for read in found[::2])
    for read, (line, reason) in zip(found[1::2], BAD.items(), strict=True):
        assert (read.row, read.raw, read.format) == (None, line, "")
        assert read.reason.startswith(reason)
        assert read.reason.isprintable()


def test_a_line_longer_than_any_row_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "ROW", lines.Bounds(size=1000, entries=1000))
    path = tmp_path / "night.jsonl"
    long = [json.dumps({"text": letter * 5000}).encode() for letter in "ab"]
    path.write_bytes(
        GOOD + long[0] + b"\n" + GOOD + long[1] + b"\n" + long[0] + b"\n" + GOOD + long[0]
    )
    found = reads(files(path), tmp_path)
    said = "is longer than 0.0 MiB; cut it"
    assert [read.reason for read in found] == ["", said, "", said, said, "", said]
    assert [read.place for read in found][-1] == "night.jsonl, line 7"
    known = [read.raw for read in found if read.reason]
    assert known[0] == known[2] != known[1]
    assert max(map(len, known)) == 32


def test_bom_crlf_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.strip() + b"\r\n\r\n  \n" + GOOD.strip())
    found = reads(files(path), tmp_path)
    assert outcome(found) == [("night.jsonl, line 1", ""), ("night.jsonl, line 4", "")]
    assert {read.raw for read in found} == {GOOD.strip()}


def damaged(name: str) -> bytes:
    draw = random.Random(0)
    noise = [{"text": f"row {number}", "x": draw.randbytes(90).hex()} for number in range(3000)]
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in noise)
    packed = {"half.jsonl.gz": gzip.compress(rows), "half.jsonl.zst": zst(rows)}.get(name, b"")
    return {
        "utf16.jsonl": GOOD.decode().encode("utf-16"),
        "no.parquet": b"no parquet",
        "no.jsonl.gz": GOOD,
        "no.jsonl.zst": GOOD,
    }.get(name, packed[: len(packed) // 2])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("utf16.jsonl", "is UTF-16; save it as UTF-8"),
        ("no.parquet", "is not Parquet, or damaged: Parquet magic bytes not found"),
        ("no.jsonl.gz", "is damaged, or still being written: zlib inflate failed"),
        ("no.jsonl.zst", "is damaged, or still being written: ZSTD decompress failed"),
        ("half.jsonl.gz", "is damaged, or still being written: Truncated compressed stream"),
        ("half.jsonl.zst", "is damaged, or still being written: Truncated compressed stream"),
    ],
)
def test_a_damaged_file_is_one_bad_read_beside_all_that_can_be_read(
    name: str, reason: str, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.jsonl").write_bytes(GOOD)
    (here / name).write_bytes(damaged(name))
    (here / "z.jsonl").write_bytes(GOOD)
    found = reads(files(here), tmp_path)
    first, *before, bad, last = found
    assert (first.place, last.place) == ("a.jsonl, line 1", "z.jsonl, line 1")
    assert (bad.place, bad.row) == (name, None)
    assert bad.reason.startswith(reason)
    assert texts(before) == [f"row {number}" for number in range(len(before))]
    if name.startswith("half"):
        # But for the block that is cut, of 128 KiB at most.
        assert len(before) > 800
    moved = shutil.copytree(here, tmp_path / "moved")
    assert reads(files(moved), tmp_path) == found
    assert source_digests([files(moved)]) == source_digests([files(here)])


def test_a_damaged_row_group_costs_no_row_before_it(tmp_path: Path) -> None:
    path = tmp_path / "night.parquet"
    rows = pa.table({"text": [f"{number}" * 50 for number in range(200)]})
    parquet.write_table(rows, path, row_group_size=100, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    second = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    end = second.data_page_offset + second.total_compressed_size
    content[end - 60 : end - 20] = bytes(40)
    path.write_bytes(content)
    found = reads(files(path), tmp_path)
    assert len(texts(found)) >= 64
    assert [read.place for read in found if read.reason] == ["night.parquet"]


def test_a_value_that_python_has_not_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "night.parquet"
    moments = pa.array([0, 2**52, 0], pa.timestamp("s"))
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "at": moments}), path)
    found = reads(files(path), tmp_path)
    assert texts(found) == ["a", "c"]
    assert found[1].place == "night.parquet, row 2"
    assert found[1].reason.startswith("holds a date out of range, or text that is not UTF-8 (")
    assert found[0].raw == b'{"at":"1970-01-01 00:00:00","text":"a"}'


def test_columns_nested_deeper_than_json_may_be_are_refused(tmp_path: Path) -> None:
    deep: Any = {"end": "x"}
    for _ in range(63):
        deep = {"a": deep}
    for name, extra in (("a.parquet", deep["a"]), ("b.parquet", deep)):
        parquet.write_table(pa.Table.from_pylist([{"text": "x", "deep": extra}]), tmp_path / name)
    said = (
        "has more than 64 levels of lists and fields in 'deep'; write them flat, or leave them out"
    )
    assert outcome(reads(files(tmp_path), tmp_path)) == [
        ("a.parquet, row 1", ""),
        ("b.parquet", said),
    ]


def test_what_swells_when_unpacked_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "FREE_BYTES", 1 << 16)
    rows = numbered(0, 5)
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zst)):
        (tmp_path / name).write_bytes(pack(rows + b" " * (1 << 19)))
        (tmp_path / f"lines-{name}").write_bytes(pack(rows + b"\n" * (1 << 19)))
    found = reads(files(tmp_path / "*.jsonl.*"), tmp_path)
    assert len(texts(found)) == 20
    bad = [read for read in found if read.reason]
    assert [read.place for read in bad] == [
        "a.jsonl.gz",
        "a.jsonl.zst",
        "lines-a.jsonl.gz",
        "lines-a.jsonl.zst",
    ]
    assert all("MiB, at most" in read.reason for read in bad)


def test_what_is_no_plain_file_or_vanishes_is_one_bad_read(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "e").mkdir(parents=True)
    (here / "a.jsonl").write_bytes(GOOD)
    os.mkfifo(here / "b.jsonl")
    (here / "c.jsonl").symlink_to(here / "nowhere")
    for name in ("d.jsonl", "e/x.jsonl", "f.jsonl"):
        (here / name).write_bytes(GOOD)
    digest = source_digests([files(here)])
    walk = read_source(files(here), Columns(), tmp_path)
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
    assert source_digests([files(here)]) != digest


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
            digest = source_digests([files(here)])
            said = r"/b': is not there, or may not be read \(Permission denied\)"
            with pytest.raises(ConfigError, match=said):
                reads(files(here / "b"), tmp_path)
        (here / "b").chmod(0o700)
        assert digest != source_digests([files(here)])
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
    assert source_digests([files(here)])


MISSING: list[tuple[str, str]] = [
    (
        "absent.jsonl",
        r"is not there, or may not be read \(No such file or directory\); correct the",
    ),
    ("absent", r"is not there, or may not be read \(No such file or directory\); correct the"),
    ("absent/*.jsonl", r"is not there, or may not be read"),
    ("here/*.parquet", r"no file there ends in \.jsonl, .*; put one there, or take the path out"),
    ("here/rows.csv", r"no file there ends in \.jsonl, "),
    ("empty", r"no file there ends in \.jsonl, "),
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
        source_digests([files(path)])


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
        digest = source_digests([far])
        assert digest == source_digests([far])
        memory.pipe("/nights/a.jsonl", numbered(0, 3))
        assert digest != source_digests([far])
        (read,) = [read for read in reads(far, tmp_path) if read.place == "a.jsonl, line 3"]
        assert read.row == {"text": "row 2"}
    finally:
        memory.rm("/nights", recursive=True)


LINE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([*BAD, GOOD.strip()]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["messages", "text", "role", "content"]), inner)
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINE, max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_no_bytes_raise_and_every_line_has_one_fate(
    tmp_path: Path, content: list[bytes], end: bytes, last: bool
) -> None:
    path = tmp_path / "night.jsonl"
    path.write_bytes(end.join(content) + (end if last else b""))
    stored = path.read_bytes()
    found = reads(files(path), tmp_path)
    if stored.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert [read.place for read in found] == ["night.jsonl"]
        return
    first, *others = stored.split(b"\n")
    written = [first.removeprefix(b"\xef\xbb\xbf"), *others]
    kept = {
        f"night.jsonl, line {number}": line.rstrip(b"\r")
        for number, line in enumerate(written, 1)
        if line.strip()
    }
    assert {read.place: read.raw for read in found} == kept
    assert len(found) == len(kept)
    assert all((read.row is None) == bool(read.reason) for read in found)
