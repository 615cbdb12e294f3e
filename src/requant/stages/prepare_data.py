"""prepare_data: one night's conversations, a held-out part, and evaluation tasks made from it."""

import random
from collections.abc import Sequence
from pathlib import Path

from requant.config.sections import Columns, FilesData, HubData, PrepareData, StdlibData
from requant.corpus import (
    Docstring,
    bucket,
    corpus_digest,
    docstrings,
    in_base,
    instruction,
    topics,
)
from requant.errors import ConfigError, ContractError
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
from requant.rows import (
    Conversation,
    Split,
    answer,
    conversation,
    cut,
    parse_row,
    quiet_datasets,
    read_file,
    refuse_overlap,
    shuffled,
    write_jsonl,
)
from requant.stage import Metrics, Stage, StageContext
from requant.store.manifest import hash_file


def execute(section: PrepareData, context: StageContext) -> Metrics:
    """Write train.jsonl, heldout.jsonl and evaluation/ into `context.out`.

    Returns:
        Counts: train_rows, heldout_rows, and `<task>_documents` of each generated task.

    Raises:
        ContractError: On a bad row, an overlap with a given held-out part, or an empty part.
        ConfigError: If a file, repository, subset or split does not exist.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    choice_task = RESPONSE_CHOICE
    if isinstance(source, StdlibData):
        split = split_by_module(docstrings(), source, section.heldout_fraction)
        choice_task = DESCRIBE_CHOICE
    elif isinstance(source, FilesData):
        split = _split_files(source, section, context)
    else:
        split = _split_hub(source, section, context)
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
    documents = _write_tasks(section, context, heldout, choice_task, _old_text(section))
    return {
        "train_rows": float(len(train)),
        "heldout_rows": float(len(heldout)),
        **{f"{task}_documents": float(count) for task, count in documents.items()},
    }


def split_by_module(
    found: Sequence[Docstring], source: StdlibData, heldout_fraction: float
) -> Split:
    """Divide the modules the base has not seen into the held-out part and the nights.

    A module's place depends on its name alone, so no module is in two of them.

    Args:
        found: Docstrings of all modules.
        source: Which night of how many.
        heldout_fraction: About this share of the modules is held out.

    Returns:
        The night's conversations and the held-out ones. An answer that is both held out and known
        to the base or to the night (boilerplate such as "Return self.") stays out of the held-out
        part or the night.
    """
    unseen = [item for item in found if not in_base(item.module)]
    known = {item.summary for item in found if in_base(item.module)}
    heldout = [
        item
        for item in unseen
        if bucket(item.module, "heldout") < heldout_fraction and item.summary not in known
    ]
    answers = {item.summary for item in heldout}
    night = [
        item
        for item in unseen
        if bucket(item.module, "heldout") >= heldout_fraction
        and int(bucket(item.module, "night") * source.nights) == source.night - 1
        and item.summary not in answers
    ]
    return Split(train=_conversations(night), heldout=_conversations(heldout))


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
    digests = {role: hash_file(_require(path, role)) for role, path in files.items()}
    return {"old_text": corpus_digest(), **digests}


def _old_text(section: PrepareData) -> str:
    """Return text that tonight's rows do not decide, so that what they take away is seen."""
    source = section.source
    if isinstance(source, FilesData) and source.old_text is not None:
        return _require(source.old_text, "old_text").read_text()
    return "\n\n".join(text for _, text in topics())


def _conversations(found: Sequence[Docstring]) -> tuple[Conversation, ...]:
    pairs = {instruction(item): item.summary for item in found}
    return tuple(conversation(prompt, response) for prompt, response in pairs.items())


def _split_files(source: FilesData, section: PrepareData, context: StageContext) -> Split:
    cache = context.work / "datasets"
    train = [
        row
        for index, path in enumerate(source.train)
        for row in read_file(_require(path, f"train.{index}"), section.columns, cache)
    ]
    if source.heldout is None:
        return cut(train, section.heldout_fraction, context.seed)
    heldout = read_file(_require(source.heldout, "heldout"), section.columns, cache)
    split = Split(train=tuple(train), heldout=tuple(heldout))
    refuse_overlap(split)
    return split


def _split_hub(source: HubData, section: PrepareData, context: StageContext) -> Split:
    from requant.hub import fetch

    folder = fetch(source.repo, source.revision, "dataset", "prepare_data.source")
    train = _hub_rows(folder, source, source.train_split, section.columns, context)
    if source.heldout_split is None:
        return cut(train, section.heldout_fraction, context.seed)
    heldout = _hub_rows(folder, source, source.heldout_split, section.columns, context)
    split = Split(train=tuple(train), heldout=tuple(heldout))
    refuse_overlap(split)
    return split


def _hub_rows(
    folder: Path, source: HubData, split: str, columns: Columns, context: StageContext
) -> list[Conversation]:
    import datasets

    cache = str(context.work / "datasets")
    try:
        with quiet_datasets():
            table = datasets.load_dataset(
                str(folder), name=source.subset, split=split, cache_dir=cache
            )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            f"prepare_data.source: {source.repo} has no split {split!r} of subset "
            f"{source.subset!r}: {error}"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise ContractError(
            f"prepare_data.source: {source.repo}, split {split}: cannot be read: "
            f"{error.__cause__ or error}"
        ) from error
    return [
        parse_row(row, columns, f"{source.repo}, split {split}, row {number}")
        for number, row in enumerate(table, 1)
    ]


def _write_tasks(
    section: PrepareData,
    context: StageContext,
    heldout: Sequence[Conversation],
    choice_task: str,
    old_text: str,
) -> dict[str, int]:
    folder = context.out / "evaluation"
    limit = section.max_evaluation_rows
    texts = [answer(row) for row in heldout[:limit]]
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


def _require(path: Path, field: str) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"prepare_data.source.{field}: {path} is not a file; give an existing one"
        )
    return path


STAGE = Stage(
    name="prepare_data",
    version=2,
    kind="dataset",
    libraries=("datasets",),
    execute=execute,
    content_digests=content_digests,
)
