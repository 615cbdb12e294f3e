"""The head of a model line: which ledger its next night builds on, and what came of each night.

One sealed document a line, replaced in one step: a night that is killed has either ended, or goes
on with the rows that it took.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from requant.errors import ArtifactError
from requant.outside.json_text import INDEX, read_object
from requant.store.content import materialise
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import Digest, Store
from requant.store.locks import locked
from requant.wording import printable

Verdict = Literal["accepted", "refused", "pending", "released", "discarded"]
"""accepted: its model serves, or nothing judges the line; refused: by the gate, or rolled back;
pending: a person has not promoted it. Rows of the last two are set aside until a person has
released them, so that the next night takes them again, or discarded them for good."""
SET_ASIDE: tuple[Verdict, ...] = ("refused", "pending")

LEDGER = "ledger.json"
"""In the artifact of a ledger: the ledgers and the rows of all nights before, and more."""
REMOVE = (
    "put back a copy of it; without one, remove it: the line then begins anew, and takes every row "
    "of its sources for new"
)


class Outcome(BaseModel):
    """What came of a night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    model: Digest | None = Field(None, description="that the night made, where it ships one")
    parent: Digest | None = Field(None, description="model that served when it began")
    began: str = Field("", description="ISO time at which it started first, UTC")
    reason: str = ""


class Begun(BaseModel):
    """A night whose outcome is not known yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str = Field(description="ISO time at which it started first, UTC")
    parent: Digest | None = Field(None, description="model that served then")
    model: Digest | None = Field(None, description="that the night has made")
    rows: Digest | None = Field(None, description="artifact of the rows it read")
    ledger: Digest | None = Field(None, description="the ledger that holds them")


class Line(BaseModel):
    """The head of a model line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ledger: Digest | None = Field(None, description="of the last night that ended")
    begun: Begun | None = None
    nights: dict[int, Outcome] = Field(default_factory=dict, description="by number, from 1")

    @field_validator("nights")
    @classmethod
    def _in_order(cls, nights: dict[int, Outcome]) -> dict[int, Outcome]:
        # Canonical JSON sorts 10 before 2.
        return dict(sorted(nights.items()))


def read_line(store: Store, name: str) -> Line:
    """Return the head of a line; of one that never kept a ledger an empty one.

    Raises:
        ArtifactError: If it cannot be believed, with the way out.
    """
    path = store.line_path(name)
    try:
        return Line.model_validate(read_sealed(store, path))
    except FileNotFoundError:
        return Line()
    except (ArtifactError, ValidationError) as error:
        said = error if isinstance(error, ArtifactError) else "it is no head of a line"
        raise ArtifactError(f"{printable(path)}: {said}; {REMOVE}") from error


def change_line(store: Store, name: str, change: Callable[[Line], Line]) -> Line:
    """Replace the head of a line by what `change` makes of it; of two at once each sees the other.

    Raises:
        ArtifactError: As `read_line`.
    """
    with locked(store.lock_path(f"line-{name}")):
        before = read_line(store, name)
        after = change(before)
        if after != before:
            write_sealed(store, store.line_path(name), after.model_dump(mode="json"))
        return after


def line_files(store: Store) -> list[Path]:
    """List the files of all heads."""
    return sorted(store.lines.glob("[!.]*"))


def descent(nights: Mapping[int, Outcome]) -> list[int]:
    """List the nights that led to the newest accepted one, each the child of the one before."""
    made = {outcome.model: night for night, outcome in nights.items() if outcome.model}
    accepted = (n for n, outcome in nights.items() if outcome.verdict == "accepted")
    night = max(accepted, default=None)
    found: list[int] = []
    while night is not None:
        found.append(night)
        earlier = made.get(nights[night].parent or "")
        night = earlier if earlier is not None and earlier < night else None
    return found[::-1]


def needed_by_lines(store: Store, generations: int = 0) -> tuple[set[str], list[str]]:
    """Return the artifacts that the next nights of all lines need, and why others are not known.

    Those are the ledger and the rows of every night: what was read years ago decides what is new.
    Each is named by the last ledger, so that none is lost with a record that somebody removed.

    Args:
        store: Of the lines.
        generations: Accepted nights whose models are named too, the last ones of each line.
    """
    needed: set[str] = set()
    reasons = []
    for path in line_files(store):
        try:
            line = read_line(store, path.stem)
            needed |= {*_named(store, line), *_models(line, generations)}
        except ArtifactError as error:
            reasons.append(str(error))
    return needed, reasons


def _models(line: Line, generations: int) -> list[str]:
    """Return what the last accepted nights made, however many were refused since."""
    made = [each.model for each in line.nights.values() if each.verdict == "accepted"]
    return [model for model in made if model][-generations:] if generations else []


def _named(store: Store, line: Line) -> Iterator[str]:
    begun = line.begun or Begun(at="")
    yield from (digest for digest in (begun.rows, begun.parent, begun.model) if digest)
    for digest in filter(None, (line.ledger, begun.ledger)):
        yield digest
        ledger = read_object(materialise(store, digest) / LEDGER, INDEX)
        yield from ledger["ledgers"]
        yield from (night["artifact"] for night in ledger["nights"])
