"""What earlier nights of a model line left that tonight can build on."""

from typing import TYPE_CHECKING

from requant.store import StageRecord, Store, all_records

if TYPE_CHECKING:
    from requant.config import Config


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
    there, _ = _datasets(store, tonight, nights)
    return {f"past_data_{age}": record for age, record in enumerate(there, 1)}


def lost_datasets(store: Store, tonight: StageRecord, nights: int) -> list[StageRecord]:
    """Return the datasets that `past_datasets` would have taken if they had not been deleted."""
    return _datasets(store, tonight, nights)[1]


def _datasets(
    store: Store, tonight: StageRecord, nights: int
) -> tuple[list[StageRecord], list[StageRecord]]:
    """Sort earlier nights' datasets, last night's first, into those that are there and not."""
    there: list[StageRecord] = []
    lost: list[StageRecord] = []
    seen = {tonight.digest}
    for record in sorted(all_records(store), key=lambda item: item.started, reverse=True):
        alike = (
            record.stage == tonight.stage
            and record.labels.get("pipeline") == tonight.labels.get("pipeline")
            and record.started < tonight.started
        )
        if alike and record.digest not in seen and len(there) < nights:
            seen.add(record.digest)
            (there if store.object_path(record.digest).is_dir() else lost).append(record)
    return there, lost
