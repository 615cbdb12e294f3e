"""The rows a prepare_data section points to, in their training and held-out part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from requant.config.data import (
    CollectedData,
    FilesData,
    HubData,
    PrepareData,
    RowRules,
    Source,
    StdlibData,
)
from requant.corpus import Docstring, bucket, docstrings, in_base, instruction
from requant.data.chat_template import Rules
from requant.data.files import count_ignored, describe, read_hub, read_row_file
from requant.data.formats import Parsed, Row
from requant.data.overlap import refuse_overlap
from requant.data.rows import Split, conversation, cut, shuffled
from requant.errors import ConfigError, ContractError


@dataclass(frozen=True)
class Sources:
    """What was read."""

    train: tuple[Parsed, ...]
    heldout: tuple[Parsed, ...] | None
    """None where it is to be cut off `train`."""
    messages: tuple[str, ...] = ()
    """What was recognised, a line for each source."""

    @property
    def everything(self) -> tuple[Parsed, ...]:
        """The rows of both parts."""
        return (*self.train, *(self.heldout or ()))

    @property
    def ignored(self) -> dict[str, int]:
        """Columns and fields nothing reads, and in how many rows they stand."""
        return count_ignored(self.everything)


def rules_of(section: RowRules) -> Rules:
    """Return how the section's rows are rendered wherever the night renders them."""
    return Rules(
        clock=section.clock.isoformat(),
        control_tokens=section.control_tokens,
        end_token=section.end_token,
    )


def read_sources(section: PrepareData, cache: Path) -> Sources:
    """Read what a section points to.

    Args:
        section: Of the configuration.
        cache: Folder for the Arrow copies `datasets` makes.

    Raises:
        ConfigError: If a file, repository, subset or split does not exist.
        ContractError: Naming place, field and value of the rows that cannot be read, the first few
            of each file or split.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibData):
        split = split_by_module(docstrings(), source, section.heldout_fraction)
        return Sources(
            train=_docstring_rows(split.train, "training"),
            heldout=_docstring_rows(split.heldout, "held-out"),
        )
    assert not isinstance(source, CollectedData), "the ledger holds its rows"
    named: dict[str, list[Parsed]]
    if isinstance(source, FilesData):
        paths = source_files(source)
        paths.pop("old_text", None)
        require_files(paths)
        named = _read_all(
            {
                field: partial(read_row_file, path, section.columns, section.unknown_fields)
                for field, path in paths.items()
            }
        )
        names = {field: str(path) for field, path in paths.items()}
    else:
        splits = {"train": source.train_split}
        splits |= {"heldout": source.heldout_split} if source.heldout_split else {}
        named = _read_all(
            {
                field: partial(
                    read_hub, source, split, section.columns, section.unknown_fields, cache
                )
                for field, split in splits.items()
            }
        )
        names = {field: f"{source.repo}, split {split}" for field, split in splits.items()}
    heldout = named.get("heldout")
    return Sources(
        train=tuple(row for field, rows in named.items() if field != "heldout" for row in rows),
        heldout=None if heldout is None else tuple(heldout),
        messages=tuple(
            line for field, rows in named.items() for line in describe(names[field], rows)
        ),
    )


def split_rows(sources: Sources, section: PrepareData, seed: int) -> Split:
    """Divide rows into both parts, without overlap.

    Raises:
        ContractError: If a given held-out part overlaps with the training part, or a part is empty.
    """
    train = [row.row for row in sources.train]
    if sources.heldout is None:
        split = cut(train, section.heldout_fraction, seed)
    else:
        split = Split(train=tuple(train), heldout=tuple(row.row for row in sources.heldout))
        refuse_overlap(sources.train, sources.heldout)
    for name, rows in (("training", split.train), ("held-out", split.heldout)):
        if not rows:
            raise ContractError(
                f"prepare_data: the {name} part is empty (training {len(split.train)}, held-out "
                f"{len(split.heldout)} rows); give at least two different rows, or change "
                f"prepare_data.heldout_fraction={section.heldout_fraction}"
                + "".join(f"; read: {line}" for line in sources.messages)
            )
    return split


def night_rows(split: Split, section: PrepareData, seed: int) -> Split:
    """Choose and order what the night trains on and what it measures on."""
    return Split(
        train=shuffled(split.train, seed, "train")[: section.max_rows],
        heldout=shuffled(split.heldout, seed, "heldout"),
    )


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


def source_files(source: FilesData) -> dict[str, Path]:
    """Return field of prepare_data.source -> the file it names, of rows and of old text."""
    files = {f"train.{index}": path for index, path in enumerate(source.train)}
    files |= {"heldout": source.heldout} if source.heldout else {}
    files |= {"old_text": source.old_text} if source.old_text else {}
    return files


def source_commit(source: HubData) -> str:
    """Return the commit that a dataset's revision resolves to now.

    Raises:
        ConfigError, TransientError: As `requant.hub.resolve_commit`.
    """
    from requant.hub import resolve_commit

    return resolve_commit(source.repo, source.revision, "dataset", "prepare_data.source")


def require_source(source: Source) -> None:
    """Refuse a source that names files or a repository that do not exist; read none of them.

    Raises:
        ConfigError: One line for each file, naming the field.
        TransientError: If the hub cannot be reached.
    """
    if isinstance(source, FilesData):
        require_files(source_files(source))
    elif isinstance(source, HubData):
        source_commit(source)
    elif isinstance(source, CollectedData) and source.old_text:
        require_files({"old_text": source.old_text})


def require_files(paths: Mapping[str, Path]) -> None:
    """Refuse files that do not exist.

    Args:
        paths: Field of prepare_data.source -> the file it names.

    Raises:
        ConfigError: One line for each, naming the field.
    """
    missing = [
        f"prepare_data.source.{field}: {path} is not a file; give an existing one"
        for field, path in paths.items()
        if not path.is_file()
    ]
    if missing:
        raise ConfigError("\n".join(missing))


def _read_all(readers: Mapping[str, Callable[[], list[Parsed]]]) -> dict[str, list[Parsed]]:
    """Read every source, so that one bad file does not hide what is wrong with the next."""
    named: dict[str, list[Parsed]] = {}
    wrong: list[str] = []
    for field, read in readers.items():
        try:
            named[field] = read()
        except ContractError as error:
            wrong.append(str(error))
    if wrong:
        raise ContractError("\n".join(wrong))
    return named


def _docstring_rows(rows: Sequence[Row], part: str) -> tuple[Parsed, ...]:
    return tuple(
        Parsed(f"docstrings, {part} row {number}", row, "messages")
        for number, row in enumerate(rows, 1)
    )


def _conversations(found: Sequence[Docstring]) -> tuple[Row, ...]:
    pairs = {instruction(item): item.summary for item in found}
    return tuple(conversation(prompt, response) for prompt, response in pairs.items())
