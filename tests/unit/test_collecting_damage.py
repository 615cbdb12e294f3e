"""What is wrong with a line or a file is said with its place, and hides nothing else."""

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from requant.data import lines
from tests.support.reads import GOOD, PAIR, files, numbered, outcome, reads, texts, zst

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
