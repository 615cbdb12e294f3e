"""Nights of the data ledger alone: read and decided on by the real stages, without training."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from requant.config import Config
from requant.data.formats import Row
from requant.data.rows import conversation
from requant.execution.key import stage_key
from requant.execution.past_nights import past_of
from requant.execution.perform import perform
from requant.execution.stage import Reporter
from requant.ledger.nights import end
from requant.stages import STAGES
from requant.store import StageRecord, Store, artifact_of
from requant.store.lines import Outcome, Verdict
from tasks.nightly.row_ledger import NothingToDo, note_taken, open_ledger
from tests.support.chain import Silent, micro_config

WORDS = (
    "river stone lamp paper winter bread glass engine violet copper meadow signal harbour needle",
    "thunder orchard marble candle anchor feather tunnel pepper walnut ribbon",
)


def chat(number: int, topic: str = "lesson") -> dict[str, Any]:
    """A conversation whose words are its own."""
    words = " ".join(WORDS).split()
    picked = [words[(number * 7 + step * step + step * number) % len(words)] for step in range(24)]
    answer = " ".join(f"{word}{number * 31 + step}" for step, word in enumerate(picked))
    return dict(conversation(f"What does {topic} {number} say?", answer))


def ledger_config(state: Path, base: Path, rows: Path, **changes: Mapping[str, Any]) -> Config:
    """Configure a line that reads all files of a folder, and takes a night of 8 rows."""
    extend = {"min_new_rows": 8, "heldout_fraction": 0.2, **changes.get("extend_ledger", {})}
    source = {"kind": "files", "name": "chats", "paths": [str(rows)]}
    collect = {"enabled": True, "sources": [source], **changes.get("collect_rows", {})}
    return micro_config(
        state,
        prepare_base={"source": {"kind": "folder", "path": str(base)}},
        collect_rows=collect,
        extend_ledger=extend,
        prepare_data={
            "source": {"kind": "collected"},
            "max_evaluation_rows": 8,
            "replay": changes.get("replay", {}),
        },
    )


def write_chats(path: Path, rows: Iterable[Row | str]) -> None:
    """Write rows, one a line; a text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))


def ledger_night(
    config: Config,
    verdict: Verdict | None = "accepted",
    model: str | None = None,
    reporter: Reporter | None = None,
    force: Collection[str] = (),
) -> dict[str, StageRecord]:
    """Perform a night up to its dataset, and end it.

    Args:
        config: See `ledger_config`.
        verdict: What comes of it; None leaves it as a kill would.
        model: Digest of what it makes.
        reporter: Is told what the stages say, and why there was nothing to do.
        force: Stages that are executed although their work is done.

    Returns:
        Stage to record; without prepare_data where there was nothing to do.
    """
    store, said = Store(config.state.resolve()), reporter or Silent()
    began = open_ledger(config, store)
    records: dict[str, StageRecord] = {}

    def take(name: str, **inputs: StageRecord) -> StageRecord:
        section = getattr(config, name)
        refs = {role: artifact_of(store, record) for role, record in inputs.items()}
        key = stage_key(STAGES[name], section, refs, config.seed, began)
        records[name] = perform(
            store,
            STAGES[name],
            key,
            section,
            refs,
            seed=config.seed,
            device="cpu",
            reporter=said,
            force=name in force,
            labels={"pipeline": config.name},
        )
        note_taken(config, store, records[name])
        return records[name]

    base = take("prepare_base")
    before = past_of("ledger", store, base, config)
    try:
        rows = take("collect_rows", base=base, **before)
        take("prepare_data", ledger=take("extend_ledger", rows=rows, **before))
    except NothingToDo as idle:
        said.message(str(idle))
        return records
    if verdict is not None:
        end(store, config.name, Outcome(verdict=verdict, model=model))
    return records
