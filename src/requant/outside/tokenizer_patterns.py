"""Patterns of a tokenizer that give up on a text, where its library says neither which nor where.

The library is in Rust: what goes wrong in it is no `Exception`, and would pass every handler.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from requant.errors import ContractError, RequantError
from requant.outside.files import read_plain
from requant.wording import few, printable, shown

TOKENIZER_NAME = "tokenizer.json"
MOST = 256 << 20
"""Bytes; one of a quarter of a million tokens takes an eighth."""
PANIC = "PanicException"
"""Name of what Rust's extensions raise; the class is private to each."""
SAID = 300
"""Characters of what the library said."""


@contextmanager
def naming_patterns(tokenizer: Any, text: str) -> Iterator[None]:
    """Turn the end of a tokenizer in the middle of a text into an error that names its patterns.

    Args:
        tokenizer: Of transformers.
        text: What it reads (file and line), for the error.

    Raises:
        ContractError: Naming the text, tokenizer.json, the fields that hold patterns, and these.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        patterns = [
            f"{field}={shown(pattern)}" for field, pattern in _patterns(_content(tokenizer))
        ]
        held = few(patterns) or "it holds no pattern"
        which = "" if len(patterns) < 2 else "one of "
        raise ContractError(
            f"{text}: {Path(str(tokenizer.name_or_path or '')) / TOKENIZER_NAME}: {which}{held}: "
            f"the tokenizer gives up on this text ({printable(error)[:SAID]}); expected a pattern "
            "without repeats inside of repeats, which try each way to divide a text: correct it, "
            "or take another base"
        ) from None


def pattern_faults(folder: Path) -> list[str]:
    """Say which patterns of a folder's tokenizer.json are none, by field, with the way out.

    Args:
        folder: Of a model whose tokenizer could not be loaded.
    """
    from tokenizers import Regex

    path = folder / TOKENIZER_NAME
    faults = []
    try:
        content = json.loads(read_plain(path, MOST)) if path.exists() else {}
    except (RequantError, ValueError, RecursionError):
        return []
    for field, pattern in _patterns(content):
        try:
            Regex(pattern)
        except Exception as error:  # the library raises no narrower one
            faults.append(
                f"{field}={shown(pattern)}: is no pattern ({printable(error)[:SAID]}); correct it, "
                "or copy the file anew"
            )
    return faults


def _content(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())


def _patterns(content: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Go through the regular expressions of a tokenizer.json, each with its field."""
    if isinstance(content, list):
        for index, value in enumerate(content):
            yield from _patterns(value, f"{field}[{index}]")
    elif isinstance(content, dict):
        for name, value in content.items():
            place = f"{field}.{name}" if field else name
            if name == "Regex" and isinstance(value, str):
                yield place, value
            # Of the vocabulary and what was added to it no part is a pattern.
            elif place not in {"model", "added_tokens"}:
                yield from _patterns(value, place)
