"""prepare_data: one night's conversations, a held-out part, and evaluation tasks made from it."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from requant.canonical import canonical_json
from requant.config.sections import FilesData, HubData, PrepareData, StdlibData
from requant.corpus import corpus_digest, topics
from requant.errors import ContractError
from requant.evaluation_tasks import (
    DESCRIBE_CHOICE,
    HELDOUT_PERPLEXITY,
    OLD_PERPLEXITY,
    RESPONSE_CHOICE,
    choice_documents,
    chunks,
    write_choice_task,
    write_perplexity_task,
)
from requant.rendering import write_rules
from requant.row_formats import Row
from requant.row_sources import Sources, read_sources, require, rules_of, split_rows
from requant.rows import answer, shuffled, write_jsonl
from requant.stage import Metrics, Stage, StageContext
from requant.store.manifest import hash_file

CARD_NAME = "data_card.json"


def execute(section: PrepareData, context: StageContext) -> Metrics:
    """Write both parts, evaluation/, the rules of rendering and a card into `context.out`.

    Returns:
        Counts: train_rows, heldout_rows, rows_with_ignored_fields (columns or fields that nothing
        reads), and `<task>_documents` of each generated task.

    Raises:
        ContractError: On a bad row, an overlap with a given held-out part, or an empty part.
        ConfigError: If a file, repository, subset or split does not exist.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    choice_task = DESCRIBE_CHOICE if isinstance(source, StdlibData) else RESPONSE_CHOICE
    sources = read_sources(section, context.work / "datasets")
    for line in sources.messages:
        context.reporter.message(line)
    split = split_rows(sources, section.heldout_fraction, context.seed)
    for name, rows in (("training", split.train), ("held-out", split.heldout)):
        if not rows:
            raise ContractError(
                f"prepare_data: the {name} part is empty (training {len(split.train)}, held-out "
                f"{len(split.heldout)} rows); give more rows or change "
                f"prepare_data.heldout_fraction={section.heldout_fraction}"
            )
    train = shuffled(split.train, context.seed, "train")[: section.max_rows]
    heldout = shuffled(split.heldout, context.seed, "heldout")
    write_jsonl(context.out / "train.jsonl", train)
    write_jsonl(context.out / "heldout.jsonl", heldout)
    write_rules(context.out, rules_of(section))
    (context.out / CARD_NAME).write_bytes(canonical_json(_card(sources)))
    documents = _write_tasks(section, context, heldout, choice_task, _old_text(section))
    return {
        "train_rows": float(len(train)),
        "heldout_rows": float(len(heldout)),
        "rows_with_ignored_fields": float(sum(bool(row.ignored) for row in sources.everything)),
        **{f"{task}_documents": float(count) for task, count in documents.items()},
    }


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
        from requant.hub import resolve_commit

        commit = resolve_commit(source.repo, source.revision, "dataset", "prepare_data.source")
        return {"commit": commit, "old_text": corpus_digest()}
    files = {f"train.{index}": path for index, path in enumerate(source.train)}
    files |= {"heldout": source.heldout} if source.heldout else {}
    files |= {"old_text": source.old_text} if source.old_text else {}
    digests = {role: hash_file(require(path, role)) for role, path in files.items()}
    return {"old_text": corpus_digest(), **digests}


def _old_text(section: PrepareData) -> str:
    """Return text that tonight's rows do not decide, so that what they take away is seen."""
    source = section.source
    if isinstance(source, FilesData) and source.old_text is not None:
        return require(source.old_text, "old_text").read_text(encoding="utf-8-sig")
    return "\n\n".join(text for _, text in topics())


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
    section: PrepareData,
    context: StageContext,
    heldout: Sequence[Row],
    choice_task: str,
    old_text: str,
) -> dict[str, int]:
    folder = context.out / "evaluation"
    limit = section.max_evaluation_rows
    # A bare tool call says nothing that a perplexity could be of.
    texts = [text for row in heldout[:limit] if (text := answer(row))]
    write_perplexity_task(folder, HELDOUT_PERPLEXITY, texts)
    counts = {HELDOUT_PERPLEXITY: len(texts)}
    choices = choice_documents(heldout, limit, context.seed)
    if choices:
        write_choice_task(folder, choice_task, choices)
        counts[choice_task] = len(choices)
    else:
        context.reporter.message(
            f"{choice_task}: left out, the held-out part has fewer than four different answers"
        )
    pieces = list(dict.fromkeys(chunks(old_text)))
    drawn = random.Random(f"{context.seed}-old").sample(pieces, min(limit, len(pieces)))
    write_perplexity_task(folder, OLD_PERPLEXITY, drawn)
    counts[OLD_PERPLEXITY] = len(drawn)
    return counts


STAGE = Stage(
    name="prepare_data",
    version=2,
    kind="dataset",
    libraries=("datasets",),
    execute=execute,
    content_digests=content_digests,
)
