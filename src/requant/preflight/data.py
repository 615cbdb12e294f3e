"""Can every row of the night be read, divided and rendered, and is there enough to judge by?"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.config import Config
from requant.config.data import CollectedData, FilesData, StdlibData, choice_task
from requant.config.task_names import (
    HELDOUT_PERPLEXITY,
    OLD_PERPLEXITY,
)
from requant.config.training import Optimisation
from requant.data.faults import Fault, listed
from requant.data.formats import Row, strings
from requant.data.mixing import general_rows
from requant.data.overlap import texts_of
from requant.data.rows import Split
from requant.data.samples import check_rows, nothing_left, too_long_for_all
from requant.data.sources import (
    night_rows,
    read_sources,
    require_source,
    rules_of,
    source_files,
    split_rows,
)
from requant.errors import RequantError, is_transient
from requant.evaluation.judging import spared
from requant.evaluation.night_verdict import fewest, guards
from requant.evaluation.tasks import Documents, night_documents, units
from requant.machine.looking import Watch, unwatched
from requant.models.tokenizer import load_tokenizer
from requant.outside.tokenizer_patterns import naming_patterns
from requant.preflight.base import LOADING_SECONDS, needing_template, opened_base
from requant.preflight.calibration import calibration_problems
from requant.preflight.problem import Problem
from requant.quantization.calibration import Pool
from requant.stages.prepare_data import read_old_text

FIELD = "prepare_data.source"
MEMORY_PER_BYTE = 40
"""Bytes of memory that a byte of a row's file may take: an empty list takes two and 56."""
READING_SECONDS, READING_SPEED = 10.0, 5e5
"""Processor seconds that reading may take, and the bytes that each second more must bring."""
ROW_SECONDS, RENDERING_SPEED = 1.5, 1e6
"""Processor seconds of one row, and the characters that each second more must bring."""
ALIKE = 16
"""Rows of the demo's data that are rendered; one is like the other."""


def data_problems(
    config: Config, watch: Watch = unwatched, *, base: bool = True
) -> Iterator[Problem]:
    """Read, divide and render every row as the night will.

    Args:
        config: The whole configuration.
        watch: Is told of each piece of the work.
        base: Whether the base is one; with no other are rows rendered.
    """
    section = config.prepare_data
    try:
        require_source(section.source)
    except RequantError as error:
        yield from _each(error)
        return
    most = dict.fromkeys(_tasks(config), section.max_evaluation_rows)
    if isinstance(section.source, CollectedData):
        # Which rows are new is not known before they are read, and a bad one ends no night.
        yield from _gate_problems(config, most)
        return
    if not base:
        yield from _problems(config, None, watch)
        return
    with opened_base(config) as folder:
        if folder is None and isinstance(section.source, StdlibData):
            # The demo, all of it made here.
            yield from _gate_problems(config, most)
            return
        yield from _problems(config, folder, watch)


def _trainings(config: Config) -> dict[str, Optimisation]:
    """Return what the enabled stages train by, of equal limits the first."""
    found: dict[tuple[int, str], str] = {}
    for name in ("train_adapter", "continue_train", "train_on_grid"):
        limits = getattr(config, name).optimisation
        if config.runs(name):
            found.setdefault((limits.max_length, limits.too_long), name)
    return {name: getattr(config, name).optimisation for name in found.values()}


def _problems(config: Config, folder: Path | None, watch: Watch) -> Iterator[Problem]:
    section = config.prepare_data
    watch(f"{FIELD}: its rows", READING_SECONDS + data_bytes(config) / READING_SPEED)
    try:
        with TemporaryDirectory() as cache:
            sources = read_sources(section, Path(cache))
        rows = night_rows(split_rows(sources, section, config.seed), section, config.seed)
    except RequantError as error:
        yield from _each(error)
        return
    try:
        old_text = read_old_text(section)
    except RequantError as error:
        yield Problem("", str(error))
        return
    made = _documents(config, rows, old_text)
    counts = (len(units(documents)) for documents in (made.heldout, made.old, made.choices))
    yield from _gate_problems(config, dict(zip(_tasks(config), counts, strict=True)))
    if folder is None:
        return
    watch(f"prepare_base.source: {folder}: its tokenizer", LOADING_SECONDS)
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template and any("messages" in row.row for row in sources.everything):
        # Where a stage needs it too, it is listed with the base.
        if not needing_template(config):
            yield Problem(FIELD, "the base has no chat template; add chat_template.jinja to it")
        return
    watch("deploy.smoke_prompt", ROW_SECONDS + len(config.deploy.smoke_prompt) / RENDERING_SPEED)
    with naming_patterns(tokenizer, "deploy.smoke_prompt"):
        tokenizer(config.deploy.smoke_prompt)
    places = {id(row.row): row.place for row in sources.everything}
    parts = [rows.train, rows.heldout]
    if isinstance(section.source, StdlibData):
        parts = [part[:ALIKE] for part in parts]
    else:
        taken = {id(row) for part in parts for row in part}
        parts.append(tuple(row.row for row in sources.everything if id(row.row) not in taken))
    through = f"through chat template and tokenizer of {folder}"
    placed = (_Watched(_placed(part, places), watch, through) for part in parts)
    found = list(_row_problems(config, tokenizer, *placed))
    yield from found
    if not found:
        pool = Pool(
            train=rows.train,
            general=general_rows(old_text, [each["text"] for each in made.old], config.seed),
            measured=texts_of(rows.heldout, [made.heldout, made.choices, made.old]),
            rules=rules_of(section),
        )
        yield from calibration_problems(config, folder, tokenizer, pool)


def data_bytes(config: Config) -> int:
    """Return the bytes of the files that rows and old text are read from; 0 of what is not local.

    Files that are missing, which somebody else tells of, count as nothing.
    """
    source = config.prepare_data.source
    if not isinstance(source, FilesData):
        return 0
    return sum(path.stat().st_size for path in source_files(source).values() if path.is_file())


@dataclass(frozen=True)
class _Watched:
    """Rows with their places, each told to the watch before it is rendered, however often."""

    rows: list[tuple[str, Row]]
    watch: Watch
    through: str

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for place, row in self.rows:
            letters = sum(len(text) for _, text in strings(dict(row)))
            # Each turn is rendered with all that stands before it, and shortened by halves.
            times = 6 + 4 * len(row.get("messages", ()))
            seconds = ROW_SECONDS + letters * times / RENDERING_SPEED
            self.watch(f"{place}, {self.through}", seconds)
            yield place, row


def _each(error: RequantError) -> Iterator[Problem]:
    """Take an error of several lines for as many problems."""
    for text in str(error).splitlines():
        named = text.startswith("prepare_data")
        yield Problem("" if named else FIELD, text, may_pass=is_transient(error))


def _placed(rows: Iterable[Row], places: dict[int, str]) -> list[tuple[str, Row]]:
    return [(places[id(row)], row) for row in rows]


def _row_problems(
    config: Config,
    tokenizer: Any,
    train: Iterable[tuple[str, Row]],
    heldout: Iterable[tuple[str, Row]],
    unused: Iterable[tuple[str, Row]] = (),
) -> Iterator[Problem]:
    rules = rules_of(config.prepare_data)
    # One cause is one problem, whatever parts its rows are in.
    faults: list[Fault] = []
    empty: list[Problem] = []
    for name, limits in _trainings(config).items():
        report = check_rows(tokenizer, train, rules, limits.max_length, limits.too_long)
        faults += report.faults
        if not report.faults and not report.counts["samples"]:
            too_long = too_long_for_all(report.counts)
            field = f"{name}.optimisation.max_length" if too_long else FIELD
            empty.append(Problem(field, nothing_left(report.counts, limits.max_length)))
    yield from dict.fromkeys(empty)
    report = check_rows(tokenizer, heldout, rules)
    faults += report.faults
    if not report.faults and not report.counts["samples"]:
        yield Problem(FIELD, "the held-out part has no assistant turn to measure on; give one")
    faults += check_rows(tokenizer, unused, rules).faults
    for field, of_template in (("prepare_base.source", True), (FIELD, False)):
        texts = listed(fault for fault in faults if fault.of_template == of_template)
        yield from (Problem(field, text) for text in texts)


def _documents(config: Config, rows: Split, old_text: str) -> Documents:
    limit = config.prepare_data.max_evaluation_rows
    return night_documents(rows.heldout, old_text, limit, config.seed)


def _tasks(config: Config) -> tuple[str, str, str]:
    """Name the tasks that tonight's rows and old text make."""
    return HELDOUT_PERPLEXITY, OLD_PERPLEXITY, choice_task(config.prepare_data.source)


def _gate_problems(config: Config, most: Mapping[str, int]) -> Iterator[Problem]:
    """Say which generated tasks have too few documents for the gate to let anything through.

    Args:
        config: The whole configuration.
        most: Task -> units there can be of it.
    """
    evaluate = config.evaluate
    if not (config.promote.auto and evaluate.generated_tasks):
        return
    counts = {task: min(count, evaluate.limit or count) for task, count in most.items()}
    there = {task: count for task, count in counts.items() if count}
    gate, least = evaluate.gate, fewest(evaluate.gate)
    guarding = guards(gate, there)
    needs = {task: fewest(gate, tails=task not in spared(guarding)) for task in guarding}
    scarce = [
        f"{task} ({counts[task]})"
        for task, needed in needs.items()
        if counts.get(task, needed) < needed
    ]
    if scarce:
        yield Problem(
            "promote.auto",
            f"true, and these tasks will have too few documents: {', '.join(scarce)}. With fewer "
            f"than {least} nothing can be shown at an error of {gate.alpha:.2g} a night, so every "
            "model would wait for a person. Give more held-out rows (prepare_data.heldout_fraction,"
            " max_evaluation_rows, evaluate.limit) or old text, fewer evaluate.gate.tests_a_year, "
            "or promote.auto=false",
        )
