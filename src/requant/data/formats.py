"""Rows from outside, whatever their columns are called, brought into the one shape of this project.

| recognised by its columns           | becomes                                                   |
|-------------------------------------|-----------------------------------------------------------|
| messages                            | as it is                                                  |
| conversations (from, value)         | ShareGPT: human, gpt, system, tool, observation, ...      |
| instruction, output [input, system] | Alpaca: instruction and input are the user's one message  |
| prompt, completion or response      | two messages, or two lists of them joined                 |
| text                                | plain text: every token carries loss, no chat template    |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.canonical import canonical_json
from requant.data.messages import EXPECTED, is_text, parse_message, parse_text, parse_tools
from requant.errors import ContractError
from requant.wording import printable, shown

if TYPE_CHECKING:
    from requant.config.data import Columns

Row = Mapping[str, Any]
"""`{"messages": [...]}`, with `tools` where the row names some, or `{"text": "..."}`; and `group`,
where the configuration names a column of what rows belong together."""

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Parsed:
    """One row in the project's shape, and how it came there."""

    place: str
    """File and line, or dataset and row number."""
    row: Row
    format: str
    ignored: tuple[str, ...] = ()
    """Columns and fields (`messages[].name`) that nothing reads."""


def parse_row(row: Any, columns: "Columns", place: str) -> Parsed:
    """Check one row and bring it into the one shape of this project.

    Args:
        row: Mapping of columns; those that are null count as absent, as Parquet fills them.
        columns: Names that differ from the usual ones.
        place: File and line, or dataset and row number, for the errors.

    Raises:
        ContractError: Naming the place, the field, the value and the expected shape.
    """
    if not isinstance(row, dict):
        raise ContractError(f"{place}: is {shown(row)}; expected an object with named columns")
    _refuse_surrogates(row, place)
    present = {name: value for name, value in row.items() if value is not None}
    group = _group(present, columns, place)
    messages, name, used = _conversation(row, present, columns, place)
    if messages is None:
        text = present["text"]
        if not is_text(text):
            raise ContractError(f"{place}: text is {shown(text)}; expected non-empty text")
        return Parsed(place, {"text": text, **group}, name, _left(present, (*used, columns.group)))
    where = used[0] if len(used) == 1 else ""
    checked: list[dict[str, Any]] = []
    ignored: dict[str, None] = {}
    for index, message in enumerate(messages):
        at = f"{place}: {where or 'messages'}[{index}]"
        clean, unread = parse_message(message, at)
        checked.append(clean)
        ignored |= dict.fromkeys(f"{where or 'messages'}[].{field}" for field in unread)
    if checked[-1]["role"] != "assistant":
        raise ContractError(f"{place}: the last message is by {checked[-1]['role']!r}; {EXPECTED}")
    if "system" in present and name != "messages":
        system = present["system"]
        if not isinstance(system, str):
            raise ContractError(f"{place}: system is {shown(system)}; expected text")
        if system.strip():
            checked.insert(0, {"role": "system", "content": system})
        used = (*used, "system")
    parsed: dict[str, Any] = {"messages": checked, **group}
    if tools := parse_tools(present.get("tools"), place):
        parsed["tools"] = tools
    _refuse_foreign(parsed, place)
    return Parsed(place, parsed, name, (*_left(present, (*used, "tools", columns.group)), *ignored))


def _conversation(
    given: Mapping[str, Any], row: Mapping[str, Any], columns: "Columns", place: str
) -> tuple[list[Any] | None, str, tuple[str, ...]]:
    """Find the conversation; return its raw messages (None: text), the format, the columns.

    Args:
        given: All columns, for the errors.
        row: Those that are not null.
        columns: As `parse_row`.
        place: As `parse_row`.
    """
    if columns.messages is None:
        prompt, answer = str(columns.prompt), str(columns.response)
        _require(given, (prompt, answer), place)
        return _pair(row, prompt, answer, place)
    if columns.messages in row or columns.messages != "messages":
        _require(given, (columns.messages,), place)
        return _listed(row, columns.messages, place)
    if "conversations" in row:
        return _listed(row, "conversations", place)
    if {"instruction", "output"} <= row.keys():
        return _alpaca(row, place)
    for answer in ("completion", "response"):
        if {"prompt", answer} <= row.keys():
            return _pair(row, "prompt", answer, place)
    if "text" in row:
        return None, "plain text", ("text",)
    raise ContractError(
        f"{place}: has no column 'messages', nor those of another format ({_columns(given)}); "
        "expected messages, conversations, instruction and output, prompt and completion or "
        "response, or text; set `columns` to those that hold the conversation"
    )


def _group(row: Mapping[str, Any], columns: "Columns", place: str) -> dict[str, str]:
    """Return what a row belongs to, where a column says it."""
    if columns.group is None:
        return {}
    value = row.get(columns.group)
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise ContractError(
            f"{place}: {columns.group} is {shown(value)}; expected a text or a whole number, as "
            "`columns.group` names what rows belong together by; give the row one of its own if it "
            "stands alone, or set `columns.group` to null"
        )
    return {"group": str(value)}


def _require(given: Mapping[str, Any], names: tuple[str, ...], place: str) -> None:
    for name in names:
        if name not in given:
            raise ContractError(
                f"{place}: has no column {name!r} ({_columns(given)}); "
                "set `columns` to those that hold the conversation"
            )
        if given[name] is None:
            raise ContractError(f"{place}: {name} is null; give the row a value, or remove it")


def _columns(given: Mapping[str, Any]) -> str:
    empty = sorted(str(name) for name, value in given.items() if value is None)
    found = shown(sorted(map(str, given.keys() - set(empty))))
    return f"found {found}" + (f", null {shown(empty)}" if empty else "")


def _listed(
    row: Mapping[str, Any], column: str, place: str
) -> tuple[list[Any], str, tuple[str, ...]]:
    items = row[column]
    if not isinstance(items, list) or not items:
        raise ContractError(f"{place}: {column} is {shown(items)}; {EXPECTED}")
    if not (isinstance(items[0], dict) and "from" in items[0]):
        return items, "messages", (column,)
    return (
        [_from_sharegpt(item, f"{place}: {column}[{at}]") for at, item in enumerate(items)],
        "ShareGPT (from, value)",
        (column,),
    )


def _from_sharegpt(item: Any, at: str) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise ContractError(f'{at} is {shown(item)}; expected {{"from": ..., "value": "text"}}')
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise ContractError(
            f"{at}.from is {shown(speaker)}; expected one of {', '.join(SHAREGPT_ROLES)}"
        )
    rest = {name: value for name, value in item.items() if name not in {"from", "value"}}
    message = {"role": SHAREGPT_ROLES[speaker], "content": item["value"], **rest}
    if speaker == "function_call":
        call = parse_text(item["value"], f"{at}.value")
        calls = call if isinstance(call, list) else [call]
        message |= {
            "content": "",
            "tool_calls": [{"type": "function", "function": call} for call in calls],
        }
    return message


def _alpaca(row: Mapping[str, Any], place: str) -> tuple[list[Any], str, tuple[str, ...]]:
    for name in ("instruction", "output"):
        if not is_text(row[name]):
            raise ContractError(f"{place}: {name} is {shown(row[name])}; expected non-empty text")
    given = row.get("input", "")
    if not isinstance(given, str):
        raise ContractError(f"{place}: input is {shown(given)}; expected text")
    prompt = f"{row['instruction']}\n\n{given}" if given.strip() else row["instruction"]
    used = ("instruction", "input", "output")
    return _turns(prompt, row["output"]), f"Alpaca ({', '.join(used)})", used


def _pair(
    row: Mapping[str, Any], prompt: str, answer: str, place: str
) -> tuple[list[Any], str, tuple[str, ...]]:
    name = f"{prompt} and {answer}"
    if isinstance(row[prompt], list) and isinstance(row[answer], list) and row[answer]:
        return [*row[prompt], *row[answer]], name, (prompt, answer)
    for column in (prompt, answer):
        if not is_text(row[column]):
            raise ContractError(
                f"{place}: {column} is {shown(row[column])}; expected non-empty text"
            )
    return _turns(row[prompt], row[answer]), name, (prompt, answer)


def _turns(prompt: str, answer: str) -> list[Any]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _left(row: Mapping[str, Any], used: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in row if name not in used))


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a JSON value, names of fields included, with the path to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield path, str(name)
            yield from strings(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, f"{path}[{index}]")


def _refuse_foreign(row: Row, place: str) -> None:
    """Refuse values that JSON has not, such as the dates and decimals of a Parquet column."""
    if "tools" not in row and not any("tool_calls" in message for message in row["messages"]):
        return
    try:
        canonical_json(row)
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"{place}: tools or tool_calls: {printable(error)}; expected what JSON holds: texts, "
            "numbers that are finite, true, false, null, lists and objects"
        ) from error


def _refuse_surrogates(row: Any, place: str) -> None:
    """Refuse half a character: no tokenizer takes it, and it cannot be written as UTF-8."""
    for path, text in strings(row):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ContractError(
                f"{place}: {ascii(path)[1:-1]}: holds {text[error.start]!a} at character "
                f"{error.start}, half of a surrogate pair, which is no text; write the whole "
                "character, or remove it"
            ) from error
