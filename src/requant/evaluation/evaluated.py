"""The evaluations of a model line that are on record: the newest, by model, and by night."""

from requant.store import StageRecord, Store, all_records, holds
from requant.store.lines import read_line


def evaluations(store: Store) -> list[StageRecord]:
    """Return every evaluation on record, oldest first."""
    return [record for record in all_records(store) if record.stage == "evaluate"]


def last_evaluation(store: Store, line: str) -> StageRecord | None:
    """Return the newest evaluation of a model line that is still there."""
    found = [
        record
        for record in evaluations(store)
        if record.labels.get("pipeline") == line and holds(store, record.digest)
    ]
    return max(found, key=lambda record: record.started, default=None)


def evaluated_models(store: Store) -> dict[str, StageRecord]:
    """Return digest of a 4-bit model -> record of its last evaluation."""
    return {
        record.key_fields["inputs"]["requantized"]: record
        for record in evaluations(store)
        if "requantized" in record.key_fields["inputs"]
    }


def evaluated_nights(store: Store, line: str) -> dict[int, StageRecord]:
    """Return night of a line -> record of the last evaluation of what it made.

    Raises:
        ArtifactError: If the head of the line cannot be believed.
    """
    evaluated = evaluated_models(store)
    return {
        night: evaluated[outcome.model]
        for night, outcome in read_line(store, line).nights.items()
        if outcome.model in evaluated
    }
