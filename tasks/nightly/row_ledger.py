"""What a night means to the data ledger: begun, its rows taken, its outcome known."""

import math

from requant.config import Config
from requant.errors import RequantError
from requant.evaluation.matrix import line_rows, summary
from requant.ledger.nights import begin, end, took
from requant.store import StageRecord, Store
from requant.store.lines import Outcome, read_line
from requant.store.pins import holder
from tasks.promote import Promotion


class NothingToDo(RequantError):
    """The sources have too few new rows for a night; the text says how many, and what they are."""


def open_ledger(config: Config, store: Store) -> str:
    """Begin a night of the ledger, or go on with the one that did not end.

    Returns:
        When it began; empty where the configuration keeps no ledger.
    """
    if not config.collect_rows.enabled:
        return ""
    begun = begin(store, config.name).begun
    assert begun is not None
    return begun.at


def note_taken(config: Config, store: Store, record: StageRecord) -> None:
    """Note what a stage of the ledger made.

    Raises:
        NothingToDo: If there is no row to train on; the ledger has the others by then.
    """
    if record.stage == "collect_rows":
        took(store, config.name, rows=record.digest)
    if record.stage == "extend_ledger":
        took(store, config.name, ledger=record.digest)
    if record.stage == config.ships and config.collect_rows.enabled:
        took(store, config.name, model=record.digest)
    if record.stage == "extend_ledger" and not record.metrics["taken"]:
        end(store, config.name, None)
        raise NothingToDo(_nothing(record, config.extend_ledger.min_new_rows))


def close_ledger(
    config: Config, store: Store, model: StageRecord | None, promotion: Promotion | None
) -> None:
    """Write down what came of the night, once: from here on its rows are trained, or set aside."""
    if read_line(store, config.name).begun is None:
        return
    digest = model.digest if model else None
    # Without promotion nothing judges the line; unless an earlier version of it serves.
    unjudged = promotion is None and holder(store, config.name, "champion") is None
    if unjudged or (promotion and promotion.outcome == "champion"):
        outcome = Outcome(verdict="accepted", model=digest)
    elif promotion and promotion.outcome == "refused":
        outcome = Outcome(verdict="refused", model=digest, reason=promotion.reason)
    else:
        outcome = Outcome(verdict="pending", model=digest, reason="a person has not promoted it")
    end(store, config.name, outcome)


def kept(store: Store, line: str) -> dict[str, float]:
    """Return what the newest generation kept of all nights, as metrics of the night.

    Returns:
        generations/average, backward_transfer and forgetting, nats a byte, each with its `_stderr`;
        see `requant.evaluation.matrix`.
    """
    found = summary(line_rows(store, line))
    means = {} if found is None else vars(found)
    return {
        f"generations/{name}{suffix}": value
        for name, mean in means.items()
        if mean is not None
        for suffix, value in (("", mean.value), ("_stderr", mean.stderr))
        if math.isfinite(value)
    }


def _nothing(record: StageRecord, needed: int) -> str:
    counts = record.metrics
    kinds = ("exact_duplicate", "near_duplicate", "contaminated", "quarantined", "held_out")
    found = [f"{counts[kind]:.0f} {kind.replace('_', ' ')}" for kind in kinds if counts.get(kind)]
    of_them = f" ({', '.join(found)})" if found else ""
    needs = f"a night needs {needed} (extend_ledger.min_new_rows)"
    if counts["waits"] >= needed:
        needs = "all of them are to be held out, by their text or group, and a night needs others"
    return (
        f"nothing to do: {counts['new_rows']:.0f} rows that no night has read{of_them}, "
        f"{counts['waits']:.0f} wait for more: {needs}"
    )
