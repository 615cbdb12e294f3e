"""Conversations from outside: read, checked row by row, and cut into training and held-out part."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.canonical import canonical_json
from requant.errors import ContractError

if TYPE_CHECKING:
    from requant.config.sections import Columns

ROLES = ("system", "user", "assistant")
EXPECTED = (
    'expected [{"role": "system" | "user" | "assistant", "content": "text"}, ...] '
    "ending with the assistant"
)

Conversation = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Split:
    """What is trained on and what is never trained on."""

    train: tuple[Conversation, ...]
    heldout: tuple[Conversation, ...]


def conversation(prompt: str, response: str) -> Conversation:
    """One question and its answer."""
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
    }


def parse_row(row: Any, columns: "Columns", where: str) -> Conversation:
    """Check one row and bring it into the one shape of this project.

    Args:
        row: Mapping of columns.
        columns: Which of them hold the conversation.
        where: Of the row, for the error's text: file and line, or dataset and row number.

    Raises:
        ContractError: Naming the place, the value and the expected shape.
    """
    names = [columns.messages] if columns.messages else [columns.prompt, columns.response]
    for name in names:
        if not isinstance(row, dict) or row.get(name) is None:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ContractError(
                f"{where}: has no column {name!r} (found {found}); "
                "set prepare_data.columns to the columns that hold the conversation"
            )
    if not columns.messages:
        texts = {str(name): row[name] for name in names}
        for name, text in texts.items():
            if not _is_text(text):
                raise ContractError(f"{where}: {name} is {_shown(text)}; expected non-empty text")
        return conversation(*texts.values())
    messages = row[columns.messages]
    if not isinstance(messages, list) or not messages:
        raise ContractError(f"{where}: {columns.messages} is {_shown(messages)}; {EXPECTED}")
    for index, message in enumerate(messages):
        place = f"{where}: {columns.messages}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ContractError(f"{place} is {_shown(message)}; {EXPECTED}")
        if message["role"] not in ROLES:
            raise ContractError(f"{place}.role is {_shown(message['role'])}; {EXPECTED}")
        if not _is_text(message["content"]):
            raise ContractError(
                f"{place}.content is {_shown(message['content'])}, expected non-empty text; "
                f"{EXPECTED}"
            )
    if messages[-1]["role"] != "assistant":
        raise ContractError(f"{where}: the last message is by {messages[-1]['role']!r}; {EXPECTED}")
    return {"messages": [{key: item[key] for key in ("role", "content")} for item in messages]}


def read_file(path: Path, columns: "Columns", cache: Path) -> list[Conversation]:
    """Read and check a .jsonl or .parquet file.

    Args:
        path: The file.
        columns: Where a row keeps its conversation.
        cache: Folder for the Arrow copy `datasets` makes of Parquet.

    Raises:
        ContractError: On the first bad row, naming file, line, value and expected shape.
    """
    # JSONL is read here and not by `datasets`: Arrow guesses one type a column, so it fails on
    # rows that differ, without their line, and turns text that looks like dates into dates.
    read = _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path, cache)
    return [parse_row(row, columns, where) for where, row in read]


def cut(rows: Sequence[Conversation], fraction: float, seed: int) -> Split:
    """Cut about `fraction` of the rows off as held-out.

    A row's side depends on its text and the seed alone, so equal rows are on one side, and a row
    that is held out tonight is held out tomorrow.
    """
    points = [_point(row, seed) for row in rows]
    limit = max(fraction, min(points, default=0.0) * (1 + 1e-12))
    return Split(
        train=tuple(row for row, point in zip(rows, points, strict=True) if point > limit),
        heldout=tuple(row for row, point in zip(rows, points, strict=True) if point <= limit),
    )


def refuse_overlap(split: Split) -> None:
    """Refuse a training row that is also in an explicitly given held-out part.

    Raises:
        ContractError: Naming the first such row.
    """
    heldout = {normalised(row): number for number, row in enumerate(split.heldout, 1)}
    for number, row in enumerate(split.train, 1):
        if (other := heldout.get(normalised(row))) is not None:
            raise ContractError(
                f"prepare_data.source: training row {number} is held-out row {other} too: "
                f"{_shown(row['messages'])}; remove it from one of them, or set heldout to null "
                "to have a part cut off without overlap"
            )


def shuffled(rows: Sequence[Conversation], seed: int, salt: str) -> tuple[Conversation, ...]:
    """Return the rows in an order that depends on `seed` and `salt` alone."""
    return tuple(random.Random(f"{seed}-{salt}").sample(rows, len(rows)))


def normalised(row: Mapping[str, Any]) -> str:
    """The conversation's text with case and white space evened out."""
    return "\0".join(
        f"{message['role']}:{' '.join(message['content'].casefold().split())}"
        for message in row["messages"]
    )


def answer(row: Mapping[str, Any]) -> str:
    """The assistant's last message."""
    return str(row["messages"][-1]["content"]).strip()


def question(row: Conversation) -> str:
    """Everything before the assistant's last message, as one text."""
    return "\n\n".join(message["content"].strip() for message in row["messages"][:-1])


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one canonical JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(canonical_json(row) + b"\n" for row in rows))


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the `datasets` library from drawing progress bars while the block runs."""
    import datasets

    were_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ContractError(f"{where}: is not JSON ({error}): {_shown(line)}") from error
            yield where, row


def _parquet_rows(path: Path, cache: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        with quiet_datasets():
            table = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", cache_dir=str(cache)
            )
    # Arrow's own errors are ValueErrors.
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ContractError(f"{path}: is not Parquet: {error.__cause__ or error}") from error
    for number, row in enumerate(table, 1):
        yield f"{path}, row {number}", row


def _point(row: Conversation, seed: int) -> float:
    digest = hashlib.sha256(f"heldout-{seed}\0{normalised(row)}".encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
