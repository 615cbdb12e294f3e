"""The door: whatever comes in, it is parsed within bounds or refused in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from requant.errors import ArtifactError, ContractError
from requant.outside.files import open_plain, read_plain, refuse_links_out
from requant.outside.json_text import Bounds, MalformedJson, parse_json, read_object
from requant.outside.patterns import check_patterns
from requant.outside.yaml_text import MalformedYaml, parse_yaml
from requant.wording import bounded

SMALL = Bounds(size=1 << 20, depth=8, entries=100)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "more than 8 levels"),
        ('{"a":' * 9 + "1" + "}" * 9, "more than 8 levels"),
        ("[" + "1," * 200 + "1]", "more than 100 entries"),
        (" " * (1 << 20) + "1", "at most 1048576 are read"),
        ('{"a": 1, "a": 2}', "'a' is given twice in one object"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is no number"),
        ("{" + '"a,a": 0,' * 90 + '"b": 0}', "'a,a' is given twice"),
        ("9" * 5000, "a whole number of 5000 digits; numbers that long are not read"),
        (b"\xff\xfe{", "invalid start byte"),
        ('{"a": \x1b[2J}', "Expecting value"),
        ('"' + '\\"' * 200_000, "Unterminated string"),
        ("", "Expecting value"),
    ],
)
def test_json_over_its_bounds_is_refused_in_one_line(text: Any, why: str) -> None:
    with pytest.raises(MalformedJson) as caught:
        parse_json(text, SMALL, finite=True)
    said = str(caught.value)
    assert why in said
    # Nobody who reads it can call Python.
    assert "sys.set" not in said
    assert "attribute" not in said
    assert said.isprintable()
    assert len(said) < 300


@pytest.mark.parametrize(
    "value", [{"a": ["}{][", '"', "\\"]}, [[[[[[[[1]]]]]]]], "x", None, [1] * 99]
)
def test_json_within_its_bounds_is_what_it_says(value: Any) -> None:
    assert parse_json(json.dumps(value), SMALL) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode(), SMALL) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "a: &x [1]\nb: *x",
            "line 2, column 4: an alias (*name) repeats another part; write",
        ),
        ("[" * 1000, "levels of lists and mappings"),
        ("a: 1\n\nb: 2\na: 3", "line 4, column 1: 'a' is given twice; keep one"),
        ("? [1]\n: 2", "a list or mapping cannot be a name"),
        ("a: 2024-13-45", "month must be in 1..12; put a text in quotes"),
        ("a: " + "9" * 6000, "line 1, column 4: a number of 6000 characters; numbers that long a"),
        ("a:\n- 0x" + "f" * 6000, "line 2, column 3: a number of 6002 characters"),
        ("a: " + "1:" * 2000 + "1", "a number of 4001 characters; numbers that long are not re"),
        ("a: " + "1:" * 9000 + "1", "at most 10000 are read"),
        ("x" * 300_000, "at most 262144 are read"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!bool foo", "..."),
        ("a: !!timestamp foo", "a value does not fit its tag (!!...); remove the tag, or put the"),
        ("a: !!bool maybe", "a value does not fit its tag"),
        ("a: \x00", "special characters are not allowed"),
        ("a: [", "line 1, column 5"),
    ],
)
def test_yaml_over_its_bounds_is_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(MalformedYaml) as caught:
        parse_yaml(text)
    said = str(caught.value)
    assert why in said
    # Nobody who reads it can call Python.
    assert "sys.set" not in said
    assert "attribute" not in said
    assert said.isprintable()
    assert len(said) < 400


def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ArtifactError, match="is no plain file; give one"):
            open_plain(path)
    with pytest.raises(ArtifactError, match=r"none.json: cannot be read \(No such file"):
        read_object(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match=r"cannot be read .embedded null byte"):
        open_plain(tmp_path / "a\0b")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ArtifactError, match=r"large: has more than 0.0 MiB, more than any file"):
        read_plain(tmp_path / "large", 10)


def test_a_link_out_of_a_folder_is_refused_and_one_of_the_hub_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("word")
    model = tmp_path / "model"
    model.mkdir()
    (model / "inside").write_text("x")
    (model / "also").symlink_to("inside")
    refuse_links_out(model)
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"LICENSE: is a link out of its folder, to .*/secret"):
        refuse_links_out(model)
    blob = tmp_path / "hub" / "blobs" / "ab"
    snapshot = tmp_path / "hub" / "snapshots" / "c0"
    for folder in (blob.parent, snapshot):
        folder.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ab")
    refuse_links_out(snapshot)


def test_a_pattern_that_never_ends_is_named_with_its_field() -> None:
    names = ["model.layers.0.self_attn.q_proj", "a" * 40 + "!"]
    check_patterns({"target_modules": r".*\.(q|v)_proj"}, names)
    with pytest.raises(ContractError, match=r"^rank_pattern: 'x' takes longer than 2 s on the nam"):
        check_patterns({"target_modules": "q", "rank_pattern: 'x'": r"(a+)+$"}, names)
    with pytest.raises(ContractError, match=r"^alpha is no pattern: unterminated character set"):
        check_patterns({"alpha": "["}, names)
    with pytest.raises(ContractError, match="pattern of 5000 characters; at most 4096 are matched"):
        check_patterns({"alpha": "a" * 5000}, names)


def test_what_a_terminal_would_obey_is_shown_and_what_nobody_reads_is_counted() -> None:
    assert bounded("a\x1b[2J\nb\u202e") == "a\\x1b[2J\nb\\u202e"
    assert bounded("x" * 20, limit=8) == "xxxxxxxx... (12 characters more)"


@given(st.text(st.sampled_from("ab\n\r\x1b\u2028. (3)"), max_size=40), st.integers(0, 12))
@example("x" * 20, 8)
@example("a\n\n", 8)
@example("x" * 8 + "... (" + "1" * 99 + " characters more)", 8)
def test_a_bounded_message_is_bounded_already(text: str, limit: int) -> None:
    # The error, the process it passes through and the command line each bound it.
    once = bounded(text, limit)
    assert bounded(once, limit) == once
    assert len(once) <= limit + len("... (100 characters more)")


def test_commas_in_texts_are_no_entries_and_names_are_compared_once() -> None:
    text = json.dumps({"table": "1,2," * 10_000})
    assert parse_json(text, SMALL) == {"table": "1,2," * 10_000}
    names = ",".join(f'"k{number}":0' for number in range(60_000))
    # By comparing each with each it would take a minute.
    with pytest.raises(MalformedJson, match="'k9' is given twice"):
        parse_json(f'{{{names},"k9":0}}', Bounds(size=1 << 20))
