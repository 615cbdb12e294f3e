"""What earlier nights of a model line left that tonight can build on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from requant.config import SHIPPING, Config
from requant.errors import ArtifactError, ContractError
from requant.store import StageRecord, Store, all_records, holds
from requant.store.lines import read_line
from requant.store.pins import holder

Use = Literal["ledger", "parent", "adapters", "judges", "datasets"]
"""What something of earlier nights is taken for."""
ADAPTERS = "past"
"""What the roles of past adapters begin with: past_1 is last night's."""
DATASETS = "past_data"
"""What the roles of past datasets begin with: past_data_1 is last night's."""
CHAMPION = "champion"
"""The model that serves."""
STACKED = "stacked"
"""What the roles of adapters below tonight's begin with: stacked_1 is the newest."""
LEDGER = "ledger"
"""What became of every row the line has read."""
ANCHOR = "anchor"
"""The model that the line began with, or that a person named since."""


def past_role(kind: str, age: int) -> str:
    """Name the role of a past artifact: `past_role(ADAPTERS, 1)` is `past_1`, last night's."""
    return f"{kind}_{age}"


def nights_ago(kind: str, role: str) -> int:
    """Read from a role how many nights old its artifact is; 0 for a role of another kind."""
    found = re.fullmatch(rf"{kind}_(\d+)", role)
    return int(found[1]) if found else 0


def past_of(use: Use, store: Store, tonight: StageRecord, config: Config) -> dict[str, StageRecord]:
    """Return what earlier nights left for a use, by the role it takes.

    Args:
        use: What it is taken for.
        store: Of the model line.
        tonight: Record of the outcome beside which it is taken.
        config: Of the night.
    """
    return PAST_USES[use].find(store, tonight, config)


def past_adapters(store: Store, tonight: StageRecord, nights: int) -> dict[str, StageRecord]:
    """Return the adapters of the nights before as merge_fp16's inputs.

    Of the same model line, trained on the same base and merged then; equal adapters count once. Of
    a line that keeps a ledger, those of accepted nights: a refused night has no children.

    Args:
        store: Of the model line.
        tonight: Record of tonight's adapter. Only what was trained before it counts, so that a
            night that is repeated later takes the same ones.
        nights: At most as many.
    """
    if not nights:
        return {}
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
    refused = _refused_adapters(store, line, records) if line else set()
    for record in sorted(records, key=lambda item: item.started, reverse=True):
        alike = (
            record.stage == tonight.stage
            and record.digest not in refused
            and record.labels.get("pipeline") == line
            and record.key_fields["inputs"]["base"] == base
            and record.digest in merged
        )
        if alike and record.started < tonight.started and record.digest != tonight.digest:
            found.setdefault(record.digest, record)
    return _by_role(ADAPTERS, [*found.values()][:nights])


def _refused_adapters(store: Store, line: str, records: Sequence[StageRecord]) -> set[str]:
    """Return the adapters in models of nights that ended and are not accepted."""
    made = {record.digest: record for record in records}
    accepted: set[str] = set()
    others: set[str] = set()
    for outcome in read_line(store, line).nights.values():
        # From what ships up to what was merged.
        inputs: Mapping[str, str] = {"model": outcome.model or ""}
        while (above := made.get(inputs.get("model", ""))) is not None:
            inputs = above.key_fields["inputs"]
        if "adapter" in inputs:
            (accepted if outcome.verdict == "accepted" else others).add(inputs["adapter"])
    return others - accepted


def past_datasets(store: Store, tonight: StageRecord, nights: int) -> dict[str, StageRecord]:
    """Return the datasets of the nights before as evaluate's inputs.

    Args:
        store: Of the model line.
        tonight: Record of tonight's dataset. Only what was prepared before it counts, so that a
            night that is repeated later takes the same ones.
        nights: At most as many; what was deleted is left out: `lost_datasets` names it.
    """
    there = [item for item in _earlier(store, tonight) if holds(store, item.digest)]
    return _by_role(DATASETS, there[:nights])


def lost_datasets(store: Store, tonight: StageRecord, nights: int) -> list[StageRecord]:
    """Return which of the last so many datasets before tonight's were deleted.

    `past_datasets` takes older ones in their place. Collecting garbage makes no such gap: it keeps
    what the evaluations it keeps were made from, and deletes the record with the artifact.
    """
    return [item for item in _earlier(store, tonight)[:nights] if not holds(store, item.digest)]


def judging_models(store: Store, tonight: StageRecord, line: str) -> dict[str, StageRecord]:
    """Return the models tonight's is held against: what serves, and the anchor of the line.

    What tonight's took the place of when it was promoted still counts as what serves, so that a
    night that is repeated is judged as before. One that is both is the champion alone.

    Args:
        store: Of the model line.
        tonight: Record of tonight's 4-bit model.
        line: Whose champion and anchor.
    """
    champion = holder(store, line, "champion")
    if champion == tonight.digest:
        champion = holder(store, line, "previous")
    anchor = holder(store, line, "anchor")
    made = {record.digest: record for record in all_records(store) if record.stage in SHIPPING}
    wanted = {ANCHOR: anchor if anchor != champion else None, CHAMPION: champion}
    return {
        role: made[digest]
        for role, digest in wanted.items()
        if digest and digest != tonight.digest and digest in made and holds(store, digest)
    }


def last_ledger(store: Store, line: str) -> dict[str, StageRecord]:
    """Return the ledger that tonight's builds on, by its role; none on the first night.

    Raises:
        ArtifactError: If the head of the line cannot be believed, or its ledger is gone: a new one
            would take every row for new.
    """
    digest = read_line(store, line).ledger
    if digest is None:
        return {}
    for record in all_records(store):
        if record.digest == digest and holds(store, digest):
            return {LEDGER: record}
    raise ArtifactError(
        f"{store.line_path(line)}: names the ledger {digest[:12]}, which is not in the state "
        "folder; put objects/ and actions/ back from a copy, or remove that file: the line then "
        "begins anew, and takes every row of its sources for new"
    )


def parent_of(store: Store, tonight: StageRecord, config: Config) -> dict[str, StageRecord]:
    """Return what tonight starts from of the generation that served when it began, by policy.

    Args:
        store: Of the model line.
        tonight: Record of tonight's ledger.
        config: Names line and policy.

    Returns:
        adapter, that is trained on (continue); stacked_1, ..., below a new one, the newest first
        (stack); model, in place of the original (chain). Nothing in a line's first night, nor in
        one that trains the original anew.

    Raises:
        ArtifactError: If what it was made by is not in the state folder.
    """
    policy = config.generations.policy
    begun = read_line(store, config.name).begun
    parent = begun.parent if begun else holder(store, config.name, "champion")
    if policy == "fresh" or parent is None or tonight.metrics["consolidates"]:
        return {}
    made = {record.digest: record for record in all_records(store)}

    def maker(digest: str, what: str) -> StageRecord:
        if digest not in made or not holds(store, digest):
            raise ArtifactError(
                f"generations.policy={policy}: {what} of the model that serves ({parent[:12]}), "
                f"{digest[:12]}, is not in the state folder: put it back from a copy, or let this "
                "night start anew with --set generations.policy=fresh"
            )
        return made[digest]

    shipped = maker(parent, "the record")
    model = maker(shipped.key_fields["inputs"].get("model", ""), "the 16-bit result")
    if policy == "chain":
        return {"model": model}
    inputs = model.key_fields["inputs"]
    if model.stage != "merge_fp16" or past_role(ADAPTERS, 1) in inputs:
        raise ContractError(
            f"generations.policy={policy}: the model that serves ({parent[:12]}) is more than the "
            f"original and its adapters (it was made by {model.stage}), so a night that starts "
            "from them would lose something; take policy=chain, or let this night start anew with "
            "policy=fresh"
        )
    adapter = maker(inputs["adapter"], "the adapter")
    if policy == "continue":
        return {"adapter": adapter}
    below = sorted((nights_ago(STACKED, role), inputs[role]) for role in inputs)
    stack = [adapter, *(maker(digest, "an adapter") for age, digest in below if age)]
    return _by_role(STACKED, stack)


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


def _by_role(kind: str, newest_first: list[StageRecord]) -> dict[str, StageRecord]:
    return {past_role(kind, age): record for age, record in enumerate(newest_first, 1)}


@dataclass(frozen=True)
class PastUse:
    """What becomes of something that earlier nights left."""

    taker: str
    """The stage that takes it."""
    find: Callable[[Store, StageRecord, Config], dict[str, StageRecord]]
    """`(store, tonight's record, configuration) -> role -> record`."""


PAST_USES: Mapping[Use, PastUse] = {
    "ledger": PastUse(
        "collect_rows",
        lambda store, tonight, config: (
            last_ledger(store, config.name) if config.collect_rows.enabled else {}
        ),
    ),
    "parent": PastUse("train_adapter", parent_of),
    "adapters": PastUse(
        "merge_fp16",
        lambda store, tonight, config: past_adapters(store, tonight, config.merge_fp16.past_nights),
    ),
    "judges": PastUse(
        "evaluate", lambda store, tonight, config: judging_models(store, tonight, config.name)
    ),
    "datasets": PastUse(
        "evaluate",
        lambda store, tonight, config: past_datasets(store, tonight, config.evaluate.past_nights),
    ),
}
"""What stages take up again of what earlier nights left."""
