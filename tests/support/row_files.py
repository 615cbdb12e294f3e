"""Rows in files, and the section that points to them."""

import json
import random
from pathlib import Path
from string import ascii_letters
from typing import Any

from requant.config.data import PrepareData


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"How much is {number} and one?"},
                {"role": "assistant", "content": f"It is {number + 1}."},
            ]
        }
        for number in range(first, last)
    ]


def noise(count: int) -> list[dict[str, Any]]:
    """Conversations of random letters."""
    draw = random.Random(0)
    words = [["".join(draw.choices(ascii_letters, k=60)) for _ in range(2)] for _ in range(count)]
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in words
    ]


def write(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def section(train: Path, heldout: Path | None = None, **fields: Any) -> PrepareData:
    old_text = fields.pop("old_text", None)
    source = {"kind": "files", "train": [train], "heldout": heldout, "old_text": old_text}
    return PrepareData.model_validate({"source": source, **fields})


def hub_section(**source: Any) -> PrepareData:
    return PrepareData.model_validate({"source": {"kind": "hub", "repo": "owner/rows", **source}})
