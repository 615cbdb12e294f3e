"""A few held-out questions, and what models answer to them, for a person to read."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from requant.canonical import canonical_json
from requant.data.artifact import HELDOUT
from requant.data.formats import Row
from requant.data.rows import answer, question
from requant.data.samples import read_rows
from requant.evaluation.artifact import EXAMPLES
from requant.machine.library_noise import no_library_noise
from requant.outside.tokenizer_patterns import naming_patterns


@dataclass(frozen=True)
class Example:
    """A held-out row, and what each model said."""

    question: str
    wanted: str
    """The row's own answer."""
    answers: Mapping[str, str]
    """By model."""


def chosen_rows(data: Path, count: int, seed: int) -> list[Row]:
    """Draw held-out rows that ask something and answer it in words.

    Args:
        data: Dataset artifact.
        count: At most so many.
        seed: Of the draw.
    """
    rows = [row for row in read_rows(data / HELDOUT) if _is_plain(row)]
    return random.Random(f"{seed}-examples").sample(rows, min(count, len(rows)))


def ask_examples(model: Any, rows: Sequence[Row], tokens: int) -> list[str]:
    """Let a model answer, by its likeliest tokens; the same question is not asked twice.

    Args:
        model: From `requant.evaluation.answering.answering_model`.
        rows: From `chosen_rows`.
        tokens: Of an answer at most.
    """
    how = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    with no_library_noise(), naming_patterns(model.tokenizer, "evaluate.examples"):
        requests = [SimpleNamespace(args=(_prompt(model, row), how)) for row in rows]
        return [text.strip() for text in model.generate_until(requests)]


def write_examples(out: Path, rows: Sequence[Row], said: Mapping[str, Sequence[str]]) -> None:
    """Write examples.json.

    Args:
        out: Existing folder.
        rows: The questions.
        said: Model -> an answer a row.
    """
    examples = [
        Example(question(row), answer(row), {name: texts[n] for name, texts in said.items()})
        for n, row in enumerate(rows)
    ]
    (out / EXAMPLES).write_bytes(canonical_json([asdict(each) for each in examples]))


def read_examples(evaluation: Path) -> list[Example]:
    """Read examples.json; an evaluation of an earlier version has none."""
    path = evaluation / EXAMPLES
    return [Example(**each) for each in json.loads(path.read_text())] if path.exists() else []


def _is_plain(row: Row) -> bool:
    """Tell whether a row is a conversation in words alone, without tools."""
    messages = row.get("messages", ())
    return bool(question(row) and answer(row)) and all(
        message.keys() == {"role", "content"} and message["role"] != "tool" for message in messages
    )


def _prompt(model: Any, row: Row) -> str:
    if model.tokenizer.chat_template is None:
        return question(row)
    return str(model.apply_chat_template(row["messages"][:-1]))
