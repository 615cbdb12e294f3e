"""What would run, and why: the keys and the verified look-up of a run, without the work."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from requant.canonical import flattened
from requant.config import Config, Section
from requant.execution.key import StageKey, stage_key
from requant.execution.past_nights import Use, past_of
from requant.execution.stage import Stage
from requant.execution.walk import HasStage
from requant.store import StageRecord, Store, all_records, artifact_of, verified_record
from requant.store.attempts import Attempt, all_attempts, in_words, read_attempt
from requant.store.lines import read_line

State = Literal["cached", "run", "waits", "off"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage's place in the plan."""

    stage: str
    state: State
    """cached: verified; run: would execute; waits: its key depends on a stage that would run;
    off: switched off."""
    reason: str
    record: StageRecord | None = None
    """Record of the cached artifact."""


@dataclass(frozen=True)
class Difference:
    """One field in which two stage keys differ; None where a side lacks it."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.before)} -> {_short(self.after)}"


class Plan:
    """What a run would do: a `requant.execution.walk.Way`."""

    def __init__(self, store: Store, config: Config, force: Collection[str]) -> None:
        self.stages: list[PlannedStage] = []
        self._store = store
        self._config = config
        self._force = force

    def off(self, stage: str) -> None:
        """Note a stage that is switched off."""
        self.stages.append(PlannedStage(stage, "off", f"{stage}.enabled=false"))

    def take(
        self, task: HasStage, section: Section, inputs: Mapping[str, PlannedStage]
    ) -> PlannedStage:
        """Plan one stage."""
        stage, force = task.stage, task.stage.name in self._force
        plan = plan_stage(
            self._store,
            stage,
            section,
            inputs,
            seed=self._config.seed,
            line=self._config.name,
            force=force,
        )
        self.stages.append(plan)
        return plan

    def past(self, use: Use, tonight: PlannedStage) -> dict[str, PlannedStage]:
        """Plan with what past nights left; not before tonight's own is there."""
        if tonight.record is None:
            return {}
        found = past_of(use, self._store, tonight.record, self._config)
        return {
            role: PlannedStage(record.stage, "cached", "of a past night", record)
            for role, record in found.items()
        }


def plan_stage(
    store: Store,
    stage: Stage,
    section: Section,
    inputs: Mapping[str, PlannedStage],
    *,
    seed: int,
    line: str,
    force: bool = False,
) -> PlannedStage:
    """Tell what a run would do with one stage.

    Args:
        store: Where records and artifacts lie.
        stage: The stage.
        section: Its configuration.
        inputs: Role to the plan of the stage that fills it.
        seed: Of the run.
        line: Model line whose earlier work a change is told against.
        force: Whether the run was asked to execute the stage anyhow.

    Raises:
        TerminalError: If content the section points to is missing.
    """
    pending = sorted({plan.stage for plan in inputs.values() if plan.record is None})
    if pending:
        forced = "; then forced" if force else ""
        return PlannedStage(stage.name, "waits", f"for {', '.join(pending)}{forced}")
    records = {role: plan.record for role, plan in inputs.items()}
    refs = {role: artifact_of(store, record) for role, record in records.items() if record}
    begun = read_line(store, line).begun
    key = stage_key(stage, section, refs, seed, begun.at if begun else "")
    if force:
        # Its bytes may come out the same, so what is downstream cannot be told.
        return PlannedStage(stage.name, "run", "forced")
    record, reason = verified_record(store, key.digest)
    if record is not None:
        return PlannedStage(stage.name, "cached", "verified", record)
    attempt = read_attempt(store, key.digest)
    if stage.reads_anew and begun is None:
        reason = "what it reads is read anew every night"
    elif attempt is not None:
        reason = in_words(store, attempt)
    elif not store.record_path(key.digest).exists():
        reason = why_not_cached(store, stage.name, key, line)
    return PlannedStage(stage.name, "run", reason)


def why_not_cached(store: Store, stage: str, key: StageKey, line: str) -> str:
    """Name the fields in which a key differs from the last record of its stage and line."""

    def ours(item: StageRecord | Attempt) -> bool:
        return item.stage == stage and item.labels.get("pipeline") == line

    past = [record for record in all_records(store) if ours(record)]
    if not past:
        attempts = [attempt for attempt in all_attempts(store) if ours(attempt)]
        if not attempts:
            return "never ran"
        return f"never ended well; with another key it {in_words(store, attempts[-1])}"
    return "; ".join(str(item) for item in key_difference(past[-1].key_fields, key.fields))


def explain_last_run(store: Store, stage: str) -> tuple[StageRecord, StageRecord | None]:
    """Return the last record of a stage and the one before it of the same model line.

    Raises:
        LookupError: If the stage has never ended well.
    """
    past = [record for record in all_records(store) if record.stage == stage]
    if not past:
        attempts = [attempt for attempt in all_attempts(store) if attempt.stage == stage]
        came = f"its last attempt {in_words(store, attempts[-1])}" if attempts else "it never ran"
        raise LookupError(f"{stage}: has no record in {store.actions}; {came}")
    line = past[-1].labels.get("pipeline")
    before = [record for record in past[:-1] if record.labels.get("pipeline") == line]
    return past[-1], before[-1] if before else None


def key_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Compare two stage keys field by field."""
    old, new = flattened(before), flattened(after)
    return [
        Difference(field, old.get(field), new.get(field))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if is_digest else text
