"""What earlier nights of a model line left that tonight can build on."""

from requant.store import StageRecord, Store, all_records


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
