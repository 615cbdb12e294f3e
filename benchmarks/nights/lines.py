"""Nine nights of one arm with requant's own stages, gate and ledger, without a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.config import Config
from requant.data.formats import Row
from requant.data.rows import json_lines
from requant.evaluation.night_verdict import read_verdict
from requant.ledger.nights import end
from requant.store import StageRecord, Store, materialise
from requant.store.durable import write_durably
from requant.store.lines import Outcome, Verdict
from requant.store.pins import holder, pin
from tasks.nightly.row_ledger import NothingToDo
from tests.support.chain import run_chain

PREPARING = ("prepare_base", "quantize_base")
"""Done once for the whole line; no night pays for them."""


@dataclass(frozen=True)
class NightResult:
    """What came of a night of an arm."""

    verdict: str
    """accepted, refused, pending, or nothing to do."""
    reason: str
    model: str | None
    """Folder of the model that serves after the night; None: the base still does."""
    data: str | None
    """Folder of the night's dataset."""
    steps: float
    rows: float
    seconds: float
    """Seconds that the stages took when they were executed."""


def line_night(
    config: Config, rows: Path, number: int, brought: Sequence[Row], told: Verdict | None = None
) -> NightResult:
    """Run a night of a line on what it brings, and let its model serve where the gate says so.

    Args:
        config: Of the line.
        rows: Its folder of rows.
        number: Of the night, from 1.
        brought: Rows.
        told: The verdict, in place of the gate's.
    """
    store = Store(config.state.resolve())
    if brought:
        write_durably(rows / f"night-{number}.jsonl", json_lines(brought))
    try:
        records = run_chain(config)
    except NothingToDo as idle:
        return NightResult("nothing to do", str(idle), _serving(store, config), None, 0, 0, 0)
    decision = read_verdict(materialise(store, records["evaluate"].digest), config.evaluate.gate)
    by_gate: dict[str, Verdict] = {"promote": "accepted", "refuse": "refused"}
    verdict = told or by_gate.get(decision.verdict, "pending")
    model = records["requantize_gptq"].digest
    if verdict == "accepted":
        _serve(store, config.name, model)
    end(
        store,
        config.name,
        Outcome(verdict=verdict, model=model, reason=decision.verdict),
    )
    return NightResult(
        verdict=verdict,
        reason="; ".join(decision.reasons),
        model=_serving(store, config),
        data=str(store.object_path(records["prepare_data"].digest)),
        steps=records["train_adapter"].metrics["steps"],
        rows=records["prepare_data"].metrics["train_rows"],
        seconds=_seconds(records),
    )


def _serve(store: Store, line: str, model: str) -> None:
    before = holder(store, line, "champion")
    if before and before != model:
        pin(store, line, "previous", before)
    if holder(store, line, "anchor") is None:
        pin(store, line, "anchor", model)
    pin(store, line, "champion", model)


def _serving(store: Store, config: Config) -> str | None:
    digest = holder(store, config.name, "champion")
    return str(store.object_path(digest)) if digest else None


def _seconds(records: Mapping[str, StageRecord]) -> float:
    return sum(each.seconds for stage, each in records.items() if stage not in PREPARING)
