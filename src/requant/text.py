"""Text to measure models on: a file of a person's own, or what every Python has."""

import json
from pathlib import Path
from typing import Any

from requant.contract import chat_template
from requant.errors import ConfigError, ContractError
from requant.evaluation_tasks import chunks
from requant.fidelity import Batch, held_out_batches, text_batches
from requant.models import load_tokenizer
from requant.parity import FIDELITY_TOKENS


def file_batches(model: Path, path: Path | None, sequences: int) -> list[Batch]:
    """Encode text with a model's tokenizer.

    Args:
        model: Model folder.
        path: .jsonl of rows with `messages` (their assistant turns carry loss) or `text`; any other
            file is plain text, cut into pieces of whole paragraphs. None for Python's own topics.
        sequences: At most as many.

    Raises:
        ConfigError: Naming the line that is no such row, or if the model has no chat template.
    """
    tokenizer = load_tokenizer(model)
    if path is None:
        from requant.corpus.stdlib import topics

        pieces = [piece for _, text in topics() for piece in chunks(text)]
        return text_batches(
            tokenizer, pieces[:: max(1, len(pieces) // sequences)][:sequences], FIDELITY_TOKENS
        )
    if not path.is_file():
        raise ConfigError(f"--text {path}: is no file; give .jsonl or plain text")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {path}: is not UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        return text_batches(tokenizer, chunks(content)[:sequences], FIDELITY_TOKENS)
    lines = enumerate(content.split("\n"), start=1)
    rows = [_row(path, number, line) for number, line in lines if line.strip()]
    kinds = {"messages" if "messages" in row else "text" for row in rows}
    if len(kinds) != 1:
        found = "both `messages` and `text`" if kinds else "no row"
        raise ConfigError(f"--text {path}: holds {found}; give rows of one of the two")
    if kinds == {"text"}:
        return text_batches(tokenizer, [row["text"] for row in rows[:sequences]], FIDELITY_TOKENS)
    if chat_template(model) is None:
        raise ConfigError(
            f"--text {path}: holds conversations, and {model} has no chat template; give plain text"
        )
    try:
        return held_out_batches(tokenizer, rows[:sequences], FIDELITY_TOKENS)[:sequences]
    except ContractError as error:
        raise ConfigError(
            f"--text {path}: has no assistant turn in its first {sequences} rows; the tokens of "
            "those are what is measured"
        ) from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--text {path}: line {number} is not JSON: {error}") from error
    if not isinstance(row, dict) or not {"messages", "text"} & row.keys():
        raise ConfigError(
            f"--text {path}: line {number} has neither `messages` nor `text`; expected one of them"
        )
    if not isinstance(row.get("text", ""), str):
        raise ConfigError(f"--text {path}: line {number}: `text` is no string")
    messages = row.get("messages", [])
    if not isinstance(messages, list) or not all(
        isinstance(item, dict)
        and isinstance(item.get("role"), str)
        and isinstance(item.get("content"), str)
        for item in messages
    ):
        raise ConfigError(
            f"--text {path}: line {number}: `messages` is no list of objects with `role` and "
            "`content`"
        )
    return row
