"""Can every row of the night be read and rendered?"""

from collections.abc import Iterator
from pathlib import Path

from requant.config import Config
from requant.config.sections import FilesData
from requant.contract import tokenizer_digest
from requant.conversation import check_rows
from requant.errors import RequantError
from requant.models import load_tokenizer
from requant.preflight.base import base_folder
from requant.preflight.memory import unless_known
from requant.preflight.problem import Problem
from requant.row_sources import placed_rows, rules_of
from requant.stages.prepare_data import content_digests

VERSION = 2
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
        "training": [
            config.train_adapter.optimisation.model_dump(include={"max_length", "too_long"}),
            config.continue_train.optimisation.model_dump(include={"max_length", "too_long"}),
        ],
        "tokenizer": tokenizer_digest(folder) if folder else None,
    }
    yield from unless_known(config.state, what, lambda: _rows(config, folder))


def _rows(config: Config, folder: Path | None) -> list[Problem]:
    section = config.prepare_data
    field = "prepare_data.source"
    try:
        rows = placed_rows(section)
    except RequantError as error:
        return [Problem(field, str(error))]
    if len(rows) < MIN_ROWS:
        text = (
            f"{len(rows)} rows in all; at least {MIN_ROWS} are needed, to train on and to hold out"
        )
        return [Problem(field, text)]
    if folder is None:
        return []
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template and any("messages" in row for _, row in rows):
        return [Problem(field, "the base has no chat template; add chat_template.jinja to it")]
    train = config.train_adapter if config.train_adapter.enabled else config.continue_train
    limits = train.optimisation
    report = check_rows(tokenizer, rows, rules_of(section), limits.max_length, limits.too_long)
    return [Problem(field, text) for text in report.problems]
