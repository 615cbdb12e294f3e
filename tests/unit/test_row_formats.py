"""Whatever the columns are called, known fields survive and unknown ones are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from requant.config.data import Columns
from requant.data.files import count_ignored, describe, read_row_file
from requant.data.formats import parse_row
from requant.data.rows import answer, normalised, question
from requant.errors import ContractError

QUESTION = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
PAIR = {"messages": [QUESTION, ANSWER]}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]

FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "messages": (PAIR, PAIR, "messages"),
    "sharegpt": (
        {
            "system": "Be brief.",
            "tools": json.dumps(TOOLS),
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {
                    "from": "function_call",
                    "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}',
                },
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "4", "weight": 1},
            ],
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                QUESTION,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "4"},
                ANSWER,
            ],
            "tools": TOOLS,
        },
        "ShareGPT (from, value)",
    ),
    "roles under conversations": ({"conversations": PAIR["messages"]}, PAIR, "messages"),
    "alpaca": (
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be brief."},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Add.\n\n2 and 2"},
                ANSWER,
            ]
        },
        "Alpaca (instruction, input, output)",
    ),
    "alpaca without input": (
        {"instruction": "2 + 2?", "input": "", "output": "4"},
        PAIR,
        "Alpaca (instruction, input, output)",
    ),
    "completion": ({"prompt": "2 + 2?", "completion": "4"}, PAIR, "prompt and completion"),
    "response": ({"prompt": "2 + 2?", "response": "4"}, PAIR, "prompt and response"),
    "lists": ({"prompt": [QUESTION], "completion": [ANSWER]}, PAIR, "prompt and completion"),
    "text": ({"text": "Two and two."}, {"text": "Two and two."}, "plain text"),
    "nulls of parquet": (
        {"messages": [{**QUESTION, "tool_calls": None, "weight": None}, ANSWER], "text": None},
        PAIR,
        "messages",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_by_its_columns(name: str) -> None:
    row, expected, kind = FORMATS[name]
    parsed = parse_row(row, Columns(), "f, line 1")
    assert (parsed.row, parsed.format, parsed.ignored) == (expected, kind, ())


def test_every_known_field_survives_and_every_other_is_named() -> None:
    function = {"name": "add", "arguments": '{"a": 2, "b": 2}'}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }
    row = {
        "messages": [
            {**QUESTION, "name": "Ada", "id": 7},
            {**called, "reasoning_content": "Ask.", "weight": 0},
            {"role": "tool", "content": "4", "tool_call_id": "call00001", "name": "add"},
            {**ANSWER, "weight": 1.0, "score": 0.5},
        ],
        "tools": TOOLS,
        "source": "web",
    }
    parsed = parse_row(row, Columns(), "f, line 1")
    calls = [{"type": "function", "id": "call00001", "function": CALL["function"]}]
    assert parsed.row == {
        "messages": [
            {**QUESTION, "name": "Ada"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": calls,
                "reasoning_content": "Ask.",
                "weight": 0,
            },
            {"role": "tool", "content": "4", "tool_call_id": "call00001", "name": "add"},
            ANSWER,
        ],
        "tools": TOOLS,
    }
    assert parsed.ignored == ("source", "messages[].id", "messages[].score")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "weight": (
        {"messages": [QUESTION, {**ANSWER, "weight": 0.5}]},
        "messages[1].weight is 0.5; expected 0 (context without loss) or 1",
    ),
    "empty answer": (
        {"messages": [QUESTION, {**ANSWER, "content": None}]},
        "messages[1].content is None, expected non-empty text (empty only beside the tool_calls",
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER]},
        "messages[0].content is [{'type': 'text', 'text': 'x'}], a list of parts; expected",
    ),
    "a user's call": (
        {"messages": [{**QUESTION, "tool_calls": [CALL]}, ANSWER]},
        "messages[0].content is ",
    ),
    "a user's thought": (
        {"messages": [{**QUESTION, "reasoning_content": "Hm."}, ANSWER]},
        "messages[0].reasoning_content: is by 'user'; only the assistant reasons",
    ),
    "arguments": (
        {
            "messages": [
                QUESTION,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "add", "arguments": "{"}}],
                },
            ]
        },
        "messages[1].tool_calls[0].function.arguments: is not JSON",
    ),
    "tools": ({**PAIR, "tools": [3]}, "tools is [3]; expected a list of JSON schemas"),
    "speaker": (
        {"conversations": [{"from": "narrator", "value": "x"}]},
        "conversations[0].from is 'narrator'; expected one of system, human",
    ),
    "last": (
        {"conversations": [{"from": "human", "value": "x"}]},
        "the last message is by 'user'",
    ),
    "surrogate": (
        {"messages": [QUESTION, {**ANSWER, "content": "4 \ud83d"}]},
        "messages[1].content: holds '\\ud83d' at character 2, half of a surrogate pair",
    ),
    "surrogate in a name": ({**PAIR, "x\udc00": 1}, ": holds '\\udc00' at character 1"),
    "null": (
        {"prompt": "x", "completion": None},
        "has no column 'messages', nor those of another format (found ['prompt'], null "
        "['completion']); ",
    ),
    "output": ({"instruction": "x", "output": ""}, "output is ''; expected non-empty text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_place_field_and_value(name: str) -> None:
    row, expected = BAD[name]
    with pytest.raises(ContractError) as refused:
        parse_row(row, Columns(), "f, line 3")
    assert str(refused.value).startswith("f, line 3: ")
    assert expected in str(refused.value)


def test_named_columns_are_taken_as_named() -> None:
    pair = Columns(messages=None, prompt="q", response="a")
    row = {"q": "2 + 2?", "a": "4", "text": "x"}
    assert parse_row(row, pair, "f").row == PAIR
    assert parse_row(row, pair, "f").ignored == ("text",)
    named = Columns(messages="dialog")
    assert parse_row({"dialog": PAIR["messages"]}, named, "f").row == PAIR
    with pytest.raises(ContractError, match=r"has no column 'dialog' \(found \['messages'\]\)"):
        parse_row(PAIR, named, "f")
    with pytest.raises(ContractError, match="f: a is null; give the row a value, or remove it"):
        parse_row({"q": "2 + 2?", "a": None}, pair, "f")


def test_a_mixed_file_with_bom_and_crlf_is_read_and_said(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    rows = [PAIR, {"instruction": "2 + 2?", "output": "4", "id": 1}, PAIR]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n\r\n")
    found = read_row_file(path, Columns(), "list")
    assert [row.row for row in found] == [PAIR] * 3
    assert [row.place for row in found] == [f"{path}, line {number}" for number in (1, 2, 3)]
    assert count_ignored(found) == {"id": 1}
    assert describe("night.jsonl", found) == [
        "night.jsonl: 3 rows, 2 messages; 1 Alpaca (instruction, input, output)",
        "night.jsonl: not read: id (1 rows)",
    ]
    with pytest.raises(ContractError, match=r"line 2: id: nothing reads this; in all: id \(1 rows"):
        read_row_file(path, Columns(), "refuse")


def test_a_surrogate_in_a_file_is_named_by_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_text(json.dumps(PAIR) + '\n{"prompt": "a\\ud800", "completion": "b"}\n')
    with pytest.raises(ContractError, match=r"line 2: prompt: holds '\\ud800' at character 1"):
        read_row_file(path, Columns(), "list")


def test_utf16_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_text(json.dumps(PAIR) + "\n", encoding="utf-16")
    with pytest.raises(ContractError, match=r"night\.jsonl: is UTF-16; save it as UTF-8$"):
        read_row_file(path, Columns(), "list")


def test_texts_of_every_shape_have_an_answer_and_a_side() -> None:
    assert (question({"text": " x "}), answer({"text": " x "})) == ("", "x")
    called = {"messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}]}
    assert (question(called), answer(called)) == ("2 + 2?", "")
    other = {**CALL, "function": {"name": "add", "arguments": {"a": 3, "b": 2}}}
    differs = {"messages": [QUESTION, {**called["messages"][1], "tool_calls": [other]}]}
    assert len({normalised(row) for row in (called, differs, PAIR, {"text": "4"})}) == 4
