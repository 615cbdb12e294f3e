"""A piece of work done once: locked, executed, published and recorded."""

import shutil
import socket
import time
from collections.abc import Callable, Mapping

from requant.config.section import Section
from requant.errors import ContractError
from requant.execution.key import StageKey
from requant.execution.stage import Metrics, Reporter, Stage, StageContext
from requant.machine.collector import set_aside
from requant.store import (
    ArtifactRef,
    StageRecord,
    Store,
    check_sizes,
    locked,
    materialise,
    publish,
    verified_record,
    write_record,
)
from requant.store.attempts import attempted, clear, clear_drafts
from requant.store.records import Curve
from requant.store.room import naming_full_disk

MOST_POINTS = 20_000
"""Points of a curve in a record: several curves stay far below what is read of one."""


def perform(
    store: Store,
    stage: Stage,
    key: StageKey,
    section: Section,
    inputs: Mapping[str, ArtifactRef],
    *,
    seed: int,
    device: str,
    reporter: Reporter,
    force: bool = False,
    labels: Mapping[str, str] | None = None,
    execute: Callable[..., Metrics] | None = None,
) -> StageRecord:
    """Do a piece of work once: return its verified record, or execute, publish and record it.

    The key's lock is held throughout, so of two processes that race the second one waits and
    finds the work done.

    Args:
        store: Where the artifact goes.
        stage: What is done.
        key: Of the work.
        section: How.
        inputs: Role to artifact.
        seed: Of every shuffle and initialisation.
        device: cpu or cuda.
        reporter: Where the stage tells how it is getting on.
        force: Execute even where the work is done.
        labels: Who asked; kept with the record.
        execute: In place of `stage.execute`, the same work elsewhere: see
            `requant.execution.launcher`.

    Raises:
        ArtifactError: If an input is missing or incomplete.
        ContractError: If content outside the store changed while the stage read it.
        DiskFullError: If the disk is full.
        Exception: What the stage raises; then nothing was published, and `work/` is kept.
    """
    what = f"{stage.name} of {(labels or {}).get('pipeline') or 'an unnamed line'}"
    say = reporter.message
    with (
        locked(store.stage_lock(key.digest), what=what, say=say),
        locked(store.use_lock, shared=True, say=say),
    ):
        known = store.record_path(key.digest).exists()
        reason = "forced"
        if not force:
            record, reason = verified_record(store, key.digest)
            if record is not None:
                clear(store, key.digest)
                return record
            if known:
                # Bytes that changed by themselves may be a disk that dies.
                say(f"{stage.name}: its earlier result is not valid, it is made again: {reason}")
        asked = dict(labels or {})
        made_in = {"host": socket.gethostname(), "root": str(store.root.resolve())}
        # Work whose key is new needs no reason: its key differs from the one before.
        why = {"reason": reason} if known else {}
        with (
            naming_full_disk(stage.name, store.root, "nothing was published"),
            attempted(store, stage.name, key.digest, asked),
        ):
            return _make(
                store,
                stage,
                key,
                section,
                inputs,
                seed=seed,
                device=device,
                reporter=reporter,
                labels={**asked, **made_in, **why},
                forced=force,
                execute=execute or stage.execute,
            )


def _make(
    store: Store,
    stage: Stage,
    key: StageKey,
    section: Section,
    inputs: Mapping[str, ArtifactRef],
    *,
    seed: int,
    device: str,
    reporter: Reporter,
    labels: Mapping[str, str],
    forced: bool,
    execute: Callable[..., Metrics],
) -> StageRecord:
    """Execute, publish and record; see `perform`, which holds the locks."""
    started = time.time()
    clock = time.monotonic()
    # A night that is killed each time must not fill the disk.
    clear_drafts(store, key.digest)
    draft = store.draft_path(key.digest)
    draft.mkdir(parents=True)
    work = store.work_path(key.digest)
    work.mkdir(parents=True, exist_ok=True)
    recorder = _CurveRecorder(reporter)
    context = StageContext(
        out=draft,
        work=work,
        seed=seed,
        device=device,
        reporter=recorder,
        store=store,
        forced=forced,
        line=labels.get("pipeline", ""),
    )
    try:
        for ref in inputs.values():
            check_sizes(store, ref)
        folders = {role: materialise(store, ref.digest) for role, ref in inputs.items()}
        set_aside()
        metrics = execute(section, context, **folders)
        _check_unchanged(stage, section, key)
        artifact = publish(store, stage.kind, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    record = StageRecord(
        stage=stage.name,
        key=key.digest,
        key_fields=dict(key.fields),
        kind=stage.kind,
        digest=artifact.digest,
        metrics=metrics,
        curves=recorder.curves(),
        started=started,
        seconds=time.monotonic() - clock,
        labels=dict(labels),
    )
    write_record(store, record)
    shutil.rmtree(work, ignore_errors=True)
    return record


def _check_unchanged(stage: Stage, section: Section, key: StageKey) -> None:
    """Refuse to file new content under the key of the old."""
    for role, digest in stage.content_digests(section).items():
        if key.fields["inputs"][role] != digest:
            raise ContractError(
                f"{stage.name}: {role} changed while it was read (was "
                f"{key.fields['inputs'][role][:12]}, is {digest[:12]}); run again"
            )


class _CurveRecorder:
    """Passes everything on and keeps the curves for the record."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._points: dict[str, dict[int, float]] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._points.setdefault(name, {})[step] = float(value)
        self._reporter.metrics(values, step)

    def progress(self, done: int, total: int, unit: str) -> None:
        self._reporter.progress(done, total, unit)

    def message(self, text: str) -> None:
        self._reporter.message(text)

    def curves(self) -> dict[str, Curve]:
        return {name: _thinned(tuple(sorted(each.items()))) for name, each in self._points.items()}


def _thinned(curve: Curve) -> Curve:
    """Keep at most so many points of a curve, evenly, and its last: MLflow has them all."""
    stride = -(-len(curve) // MOST_POINTS)
    return curve if stride <= 1 else (*curve[:-1:stride], curve[-1])
