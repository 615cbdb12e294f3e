"""Can every row of the night be read and rendered?"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.config import Config
from requant.config.sections import FilesData
from requant.contract import tokenizer_digest
from requant.conversation import assistant_samples
from requant.errors import RequantError
from requant.models import load_tokenizer
from requant.preflight.base import base_folder
from requant.preflight.memory import unless_known
from requant.preflight.problem import Problem
from requant.rows import Conversation, read_file
from requant.stages.prepare_data import content_digests

VERSION = 1
"""Raised with every change of what is looked for: what an earlier look found right is forgotten."""
MIN_ROWS = 2
"""One to train on, one to hold out."""


def data_problems(config: Config) -> Iterator[Problem]:
    """Read and render every row of local files; hub data and the demo's are known by their kind.

    Files and repositories that do not exist are found for every kind.
    """
    section = config.prepare_data
    digests = content_digests(section)
    source = section.source
    if not isinstance(source, FilesData):
        return
    folder = base_folder(config)
    if folder is not None and not (folder / "config.json").exists():
        folder = None  # a problem of the base, which is listed there
    what = {
        "look": "rows",
        "version": VERSION,
        "data": digests,
        "section": section.key_fields(),
        "tokenizer": tokenizer_digest(folder) if folder else None,
    }
    yield from unless_known(config.state, what, lambda: _rows(source, config, folder))


def _rows(source: FilesData, config: Config, folder: Path | None) -> list[Problem]:
    columns = config.prepare_data.columns
    files = {f"train.{number}": path for number, path in enumerate(source.train)}
    files |= {"heldout": source.heldout} if source.heldout else {}
    tokenizer = load_tokenizer(folder) if folder else None
    problems: list[Problem] = []
    rows = 0
    with TemporaryDirectory() as cache:
        for field, path in files.items():
            try:
                read = read_file(path, columns, Path(cache))
            except RequantError as error:
                problems.append(Problem(f"prepare_data.source.{field}", str(error)))
                continue
            rows += len(read)
            if tokenizer is not None:
                problems += _rendered(tokenizer, read, f"prepare_data.source.{field}", path)
    if rows < MIN_ROWS and not problems:
        problems.append(
            Problem(
                "prepare_data.source.train",
                f"{rows} rows in all; at least {MIN_ROWS} are needed, to train on and to hold out",
            )
        )
    return problems


def _rendered(tokenizer: Any, rows: list[Conversation], field: str, path: Path) -> list[Problem]:
    """Render each row as training will; one problem for each rule that rows break."""
    if not tokenizer.chat_template:
        return [Problem(field, "the base has no chat template; add chat_template.jinja to it")]
    first: dict[str, int] = {}
    count: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        try:
            assistant_samples(tokenizer, row["messages"])
        except Exception as error:  # a template may raise anything
            rule = str(error)
            first.setdefault(rule, number)
            count[rule] += 1
    return [
        Problem(
            field,
            f"{path}, row {number}: the chat template refuses it: {rule} ({count[rule]} rows); "
            "change the rows or the base's template",
        )
        for rule, number in first.items()
    ]
