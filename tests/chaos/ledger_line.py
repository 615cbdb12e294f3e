"""A line whose nights are killed: its base, what arrives at it, and what a person decides."""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from requant.config import Config
from requant.config.base import PrepareBase
from requant.config.data import CollectedData
from requant.data.rows import conversation
from requant.execution.stage import StageContext
from requant.ledger.document import Ledger
from requant.ledger.nights import decide_set_aside, ledger_of
from requant.store import Store
from requant.store.lines import Line, Verdict, read_line
from tests.chaos.strikes import (
    finished,
)
from tests.support.chain import MICRO, Silent
from tests.support.ledger_nights import chat, ledger_config, ledger_night, write_chats

REFUSED, RELEASED = 3, 5
"""Of every seven nights this one is refused; after that one the rows it set aside are released."""
EVERY = 7
OLD_TEXT = "old.txt"


@dataclass
class Played:
    """A line that is killed, and what arrived at it."""

    folder: Path
    """Every child works in its folder `now`."""
    config: Config
    draw: random.Random
    arrived: int = 0
    chats: int = 0
    taken: dict[str, str] = field(default_factory=dict)
    """Moment at which a night began -> the rows that it had taken when it was killed."""

    @property
    def store(self) -> Store:
        return Store(self.config.state)

    @property
    def rows(self) -> Path:
        """Where rows arrive."""
        return self.folder / "now" / "chats"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def line(self) -> Line:
        return read_line(self.store, self.config.name)

    def ledger(self) -> Ledger:
        """Return the ledger of the last night that ended."""
        return ledger_of(self.store, self.line().ledger)


def ready(folder: Path, base: Path, seed: int) -> Played:
    """Make a line on a base, at which nothing has arrived yet."""
    (folder / "now").mkdir(parents=True)
    config = configured(folder / "now" / "state", base, folder / "now" / "chats")
    return Played(folder, config, random.Random(seed))


def configured(state: Path, base: Path, rows: Path) -> Config:
    """Configure a line whose nights hold out a fifth, and take 30 rows at most."""
    config = ledger_config(
        state, base, rows, extend_ledger={"max_rows": 30}, collect_rows={"max_bad_share": 0.9}
    )
    # The standard library, of which it would be by default, takes a second to find.
    source = CollectedData(kind="collected", old_text=base.parent / OLD_TEXT)
    data = config.prepare_data.model_copy(update={"source": source})
    return config.model_copy(update={"prepare_data": data})


def base_in(folder: Path) -> Path:
    """Make a base of two steps: of it the chat template and the tokenizer are what counts."""
    (folder / "now").mkdir(parents=True)
    finished(folder / "log", _make_base, folder / "now")
    return folder / "now" / "out"


def _make_base(folder: Path) -> None:
    from requant.stages import prepare_base

    document = yaml.safe_load(MICRO)["prepare_base"]
    document["source"]["steps"] = 2
    for name in ("out", "work"):
        (folder / name).mkdir()
    pieces = (f"This is what stood in the old text, number {number}." for number in range(50))
    (folder / OLD_TEXT).write_text("\n\n".join(pieces))
    context = StageContext(folder / "out", folder / "work", 0, "cpu", Silent())
    prepare_base.execute(PrepareBase.model_validate(document), context)


def night(config: Config) -> None:
    """Take a night to its end, or go on with one that was killed: what every child does."""
    store = Store(config.state)
    number = ledger_of(store, read_line(store, config.name).ledger).night + 1
    ledger_night(config, verdict_of(number))
    (config.state.parent / "ended").write_text("")


def verdict_of(number: int) -> Verdict:
    return "refused" if number % EVERY == REFUSED else "accepted"


def arrive(played: Played, least: int = 2) -> None:
    """Let a file of new rows come, with what else a source has: repeated, copied, broken ones."""
    draw = played.draw
    count = draw.randrange(least, 14)
    rows: list[Any] = [chat(number) for number in range(played.chats, played.chats + count)]
    if played.chats:
        again = chat(draw.randrange(played.chats))
        question, answer = (message["content"] for message in again["messages"])
        rows.append(conversation(question.upper(), f"  {answer}"))
        rows.append(conversation(f"Who said {answer}?", f"Somebody, in row {played.arrived}."))
    if draw.random() < 0.3:
        rows.append(f"broken {played.arrived}")
    draw.shuffle(rows)
    played.chats += count
    if played.arrived and played.arrived % 4 == 0:
        earlier = draw.choice(sorted(played.rows.glob("*.jsonl")))
        shutil.copyfile(earlier, played.rows / f"copy-{played.arrived:03}.jsonl")
    write_chats(played.rows / f"{played.arrived:03}.jsonl", rows)
    played.arrived += 1


def decide(config: Config) -> None:
    """Decide, between nights, on the rows that a refused night set aside: a person does."""
    store = Store(config.state)
    line = read_line(store, config.name)
    last = ledger_of(store, line.ledger).night
    for number, outcome in line.nights.items():
        if outcome.verdict == "refused" and last >= number + RELEASED - REFUSED:
            decide_set_aside(store, config.name, number, "released", "")
