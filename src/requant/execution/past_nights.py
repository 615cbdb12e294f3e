"""What earlier nights of a model line left that tonight can build on."""

from typing import TYPE_CHECKING

from requant.store import StageRecord, Store, all_records, holds

if TYPE_CHECKING:
    from requant.config import Config

TAKES_PAST = {"train_adapter": "merge_fp16", "prepare_data": "evaluate"}
"""A stage whose earlier results tonight can use, and the stage that takes them."""


def past_of(store: Store, tonight: StageRecord, config: "Config") -> dict[str, StageRecord]:
    """Return what earlier nights left of the kind tonight's record is, by the role it takes.

    Adapters go to merge_fp16, datasets to evaluate; of anything else, or where the configuration
    asks for none, there is nothing.
    """
    if tonight.stage == "train_adapter":
        return past_adapters(store, tonight, config.merge_fp16.past_nights)
    if tonight.stage == "prepare_data":
        return past_datasets(store, tonight, config.evaluate.past_nights)
    return {}


def past_adapters(store: Store, tonight: StageRecord, nights: int) -> dict[str, StageRecord]:
    """Return the adapters of the nights before as merge_fp16's inputs: past_1 is last night's.

    Of the same model line, trained on the same base and merged then; equal adapters count once.

    Args:
        store: Of the model line.
        tonight: Record of tonight's adapter. Only what was trained before it counts, so that a
            night that is repeated later takes the same ones.
        nights: At most as many.
    """
    base = tonight.key_fields["inputs"]["base"]
    line = tonight.labels.get("pipeline")
    records = all_records(store)
    # What could not be merged alone must not hold up the nights after it.
    merged = {
        item.key_fields["inputs"]["adapter"]
        for item in records
        if item.stage == "merge_fp16" and item.started < tonight.started
    }
    found: dict[str, StageRecord] = {}
    for record in sorted(records, key=lambda item: item.started, reverse=True):
        alike = (
            record.stage == tonight.stage
            and record.labels.get("pipeline") == line
            and record.key_fields["inputs"]["base"] == base
            and record.digest in merged
        )
        if alike and record.started < tonight.started and record.digest != tonight.digest:
            found.setdefault(record.digest, record)
    return {f"past_{age}": record for age, record in enumerate([*found.values()][:nights], 1)}


def past_datasets(store: Store, tonight: StageRecord, nights: int) -> dict[str, StageRecord]:
    """Return the datasets of the nights before as evaluate's inputs: past_data_1 is last night's.

    Args:
        store: Of the model line.
        tonight: Record of tonight's dataset. Only what was prepared before it counts, so that a
            night that is repeated later takes the same ones.
        nights: At most as many; what was deleted is left out: `lost_datasets` names it.
    """
    there = [item for item in _earlier(store, tonight) if holds(store, item.digest)]
    return {f"past_data_{age}": record for age, record in enumerate(there[:nights], 1)}


def lost_datasets(store: Store, tonight: StageRecord, nights: int) -> list[StageRecord]:
    """Return which of the last so many datasets before tonight's were deleted.

    `past_datasets` takes older ones in their place. Collecting garbage makes no such gap: it keeps
    what the evaluations it keeps were made from, and deletes the record with the artifact.
    """
    return [item for item in _earlier(store, tonight)[:nights] if not holds(store, item.digest)]


def _earlier(store: Store, tonight: StageRecord) -> list[StageRecord]:
    """List the different datasets of the nights before, last night's first."""
    found = {
        record.digest: record
        for record in all_records(store)
        if record.stage == tonight.stage
        and record.labels.get("pipeline") == tonight.labels.get("pipeline")
        and record.started < tonight.started
        and record.digest != tonight.digest
    }
    return sorted(found.values(), key=lambda item: item.started, reverse=True)
