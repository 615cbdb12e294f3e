"""prepare_data: one night's conversations, a held-out part, and evaluation tasks made from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json, digest_of
from requant.config.data import (
    CollectedData,
    FilesData,
    HubData,
    PrepareData,
    StdlibData,
    choice_task,
)
from requant.config.task_names import HELDOUT_PERPLEXITY, OLD_PERPLEXITY
from requant.corpus import corpus_digest, topics
from requant.data.artifact import CARD_NAME, EVALUATION, GENERAL, HELDOUT, TRAIN, WRITTEN
from requant.data.chat_template import Rules, read_rules, write_rules
from requant.data.formats import Row
from requant.data.mixing import BY_THE_BASE, general_rows, mixed, unmeasured
from requant.data.overlap import Measured, duplicates, texts_of
from requant.data.plain_text import read_text
from requant.data.rows import Split, shuffled, write_jsonl
from requant.data.samples import read_rows
from requant.data.sources import (
    Sources,
    night_rows,
    read_sources,
    require_files,
    rules_of,
    source_commit,
    source_files,
    split_rows,
)
from requant.errors import ConfigError
from requant.evaluation.tasks import (
    Documents,
    night_documents,
    units,
    write_choice_task,
    write_perplexity_task,
)
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.ledger.document import Ledger, read_decisions, read_ledger, rows_of
from requant.ledger.fates import Decided
from requant.ledger.verdicts import not_held_out
from requant.store import Store
from requant.store.manifest import hash_file


@dataclass(frozen=True)
class Night:
    """What tonight is trained on and measured on, and what is said of it."""

    rows: Split
    card: Mapping[str, Any]
    rules: Rules
    counts: Metrics
    earlier: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    """Night -> rows of the reservoir that it was trained on."""
    whole: bool = False
    """Whether all of the reservoir is trained on again."""
    number: int = 0
    """Of the ledger."""


def execute(
    section: PrepareData,
    context: StageContext,
    ledger: Path | None = None,
    written: Path | None = None,
) -> Metrics:
    """Write both parts, evaluation/, the rules of rendering and a card into `context.out`.

    Args:
        section: Of the configuration.
        context: Of the stage; where there is a ledger, its store holds the rows.
        ledger: What extend_ledger decided tonight; None where the section's source is read.
        written: Artifact of write_replay; None where the base writes nothing.

    Returns:
        Counts: train_rows, replayed_rows (those of them that are not new), heldout_rows,
        rows_with_ignored_fields (columns or fields that nothing reads), duplicate_rows (rows that
        repeat an earlier one), general_rows (pieces of old text for calibration),
        `<task>_documents` of each generated task, and `<task>_units`, in which documents of one
        group count once; where the base writes rows also written_rows (those of them that are
        trained on) and measured_written_rows (that are not, being like measured text).

    Raises:
        ContractError: On a bad row, an overlap with a given held-out part, or an empty part.
        ConfigError: If a file, repository, subset or split does not exist.
        TransientError: If the hub cannot be reached.
    """
    night = _read(section, context) if ledger is None else _taken(section, context, ledger)
    heldout = night.rows.heldout
    old_text = read_old_text(section)
    made = night_documents(heldout, old_text, section.max_evaluation_rows, context.seed)
    general = general_rows(old_text, [each["text"] for each in made.old], context.seed)
    own, like_measured = _written(context, written, ledger, heldout, made)
    mix = mixed(
        night.rows.train,
        night.earlier,
        general,
        section.replay,
        context.seed,
        written=own,
        night=night.number or digest_of(night.rows.train),
        whole=night.whole,
    )
    for line in mix.said:
        context.reporter.message(line)
    train = mix.rows
    by_the_base = {BY_THE_BASE: mix.counts.get(BY_THE_BASE, 0), "measured_written": like_measured}
    write_jsonl(context.out / TRAIN, train)
    write_jsonl(context.out / HELDOUT, heldout)
    write_rules(context.out, night.rules)
    card = {**night.card, **({"mix": mix.counts} if len(mix.counts) > 1 else {})}
    (context.out / CARD_NAME).write_bytes(canonical_json(card))
    write_jsonl(context.out / GENERAL, general)
    documents = _write_tasks(section, context, made)
    return {
        "train_rows": float(len(train)),
        "heldout_rows": float(len(heldout)),
        "replayed_rows": float(len(train) - len(night.rows.train)),
        **night.counts,
        "general_rows": float(len(general)),
        **{f"{name}_rows": float(count) for name, count in by_the_base.items() if written},
        **{f"{task}_documents": float(len(each)) for task, each in documents.items()},
        **{f"{task}_units": float(len(units(each))) for task, each in documents.items()},
    }


def _read(section: PrepareData, context: StageContext) -> Night:
    """Read the section's source, and divide its rows."""
    sources = read_sources(section, context.work / "datasets")
    for line in sources.messages:
        context.reporter.message(line)
    read = [row.row for row in sources.everything]
    repeated = duplicates(read)
    if repeated:
        context.reporter.message(
            f"{repeated} of {len(read)} rows repeat an earlier one, case and white space aside; "
            "they stay in: remove them from the files where that is not meant"
        )
    split = split_rows(sources, section, context.seed)
    if left := len(read) - len(split.train) - len(split.heldout):
        context.reporter.message(
            f"{left} held-out rows repeat a training row of another group and are left out: what "
            "is trained on is not measured on"
        )
    ignored = sum(bool(row.ignored) for row in sources.everything)
    return Night(
        rows=night_rows(split, section, context.seed),
        card=_card(sources),
        rules=rules_of(section),
        counts={"rows_with_ignored_fields": float(ignored), "duplicate_rows": float(repeated)},
    )


def _taken(section: PrepareData, context: StageContext, folder: Path) -> Night:
    """Take the rows that the ledger decided on tonight, in an order by the seed."""
    assert context.store is not None
    ledger = read_ledger(folder)
    decided = {each.number: each.decided for each in read_decisions(folder, ("taken", "held_out"))}
    rows = {number: row.row for number, row in rows_of(context.store, ledger, decided) if row.row}

    def part(kind: Decided, salt: str) -> tuple[Row, ...]:
        found = [row for number, row in rows.items() if decided[number] == kind]
        return shuffled(found, context.seed, salt)

    split = Split(train=part("taken", "train"), heldout=part("held_out", "heldout"))
    card = {"rows": len(rows), "night": ledger.night}
    replays = ledger.consolidates or section.replay.rows
    earlier = _reservoir(context.store, ledger) if replays else {}
    return Night(split, card, read_rules(folder), {}, earlier, ledger.consolidates, ledger.night)


def _written(
    context: StageContext,
    folder: Path | None,
    ledger: Path | None,
    heldout: Sequence[Row],
    made: Documents,
) -> tuple[list[Row], int]:
    """Read what the base wrote but what is like measured text; return how many rows that is too."""
    if folder is None:
        return [], 0
    rows = read_rows(folder / WRITTEN)
    kept = unmeasured(rows, Measured(texts_of(heldout, [made.heldout, made.choices, made.old])))
    if ledger is not None:
        assert context.store is not None
        kept = not_held_out(context.store, ledger, kept)
    if left_out := len(rows) - len(kept):
        context.reporter.message(
            f"{left_out} of {len(rows)} rows that the base wrote are like text that is measured "
            "on, and are not replayed"
        )
    return kept, left_out


def _reservoir(store: Store, ledger: Ledger) -> dict[int, list[Row]]:
    """Return night -> rows of the reservoir that it was trained on."""
    night_of = dict(ledger.reservoir.rows)
    found: dict[int, list[Row]] = {}
    for number, row in rows_of(store, ledger, night_of):
        assert row.row is not None
        found.setdefault(night_of[number], []).append(row.row)
    return dict(sorted(found.items()))


def content_digests(section: PrepareData) -> dict[str, str]:
    """Return role -> digest of what the source points to outside the configuration.

    Raises:
        ConfigError: If a file or repository does not exist.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibData):
        return {"corpus": corpus_digest()}
    if isinstance(source, HubData):
        return {"commit": source_commit(source), "old_text": corpus_digest()}
    if isinstance(source, CollectedData):
        if source.old_text is None:
            return {"old_text": corpus_digest()}
        require_files({"old_text": source.old_text})
        return {"old_text": hash_file(source.old_text)}
    files = source_files(source)
    require_files(files)
    return {"old_text": corpus_digest(), **{role: hash_file(path) for role, path in files.items()}}


def read_old_text(section: PrepareData) -> str:
    """Return text that tonight's rows do not decide, so that what they take away is seen.

    Raises:
        ConfigError: If the file given for it does not exist, is no text, or is empty.
    """
    source = section.source
    if not isinstance(source, FilesData | CollectedData) or source.old_text is None:
        return "\n\n".join(text for _, text in topics())
    text = read_text("prepare_data.source.old_text", source.old_text)
    if not text.strip():
        raise ConfigError(
            f"prepare_data.source.old_text: {source.old_text} is empty; give text, or null"
        )
    return text


def _card(sources: Sources) -> dict[str, Any]:
    """What the rows were, without paths: formats, what nobody reads, what carries no loss."""
    rows = sources.everything
    weightless = sum(
        message.get("weight") == 0 for row in rows for message in row.row.get("messages", ())
    )
    return {
        "rows": len(rows),
        "formats": dict(sorted(Counter(row.format for row in rows).items())),
        "ignored": sources.ignored,
        "turns_without_loss": weightless,
    }


def _write_tasks(
    section: PrepareData, context: StageContext, made: Documents
) -> dict[str, list[dict[str, Any]]]:
    folder = context.out / EVALUATION
    choice = choice_task(section.source)
    written = {}
    for task, texts in ((HELDOUT_PERPLEXITY, made.heldout), (OLD_PERPLEXITY, made.old)):
        if texts:
            write_perplexity_task(folder, task, texts)
            written[task] = texts
    if made.choices:
        write_choice_task(folder, choice, made.choices)
        written[choice] = made.choices
    for task, why in (
        (HELDOUT_PERPLEXITY, "no held-out answer has text"),
        (choice, "the held-out part has fewer than four different answers"),
    ):
        if task not in written:
            context.reporter.message(f"{task}: left out, {why}")
    return written


STAGE = Stage(
    name="prepare_data",
    version=6,
    kind="dataset",
    libraries=("datasets",),
    execute=execute,
    content_digests=content_digests,
    artifact="data",
    headline=(worded("{} training rows, {} held out", "train_rows", "heldout_rows"),),
)
