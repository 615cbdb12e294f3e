"""Kills in the stages of a night, on a store alone."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from requant.config import Config
from requant.store import Store, all_records
from requant.store.answers import answer_notes, read_kept
from requant.store.health import examine
from tests.chaos.strikes import Length, Phase, Strike, finished, length_of, moments, struck
from tests.support.chain import micro_config, run_chain

STAGES = ("merge_fp16", "continue_train", "requantize_gptq", "evaluate")
"""Those that the issue names; any other stage would do."""


@dataclass(frozen=True)
class Reference:
    """An undisturbed night."""

    folder: Path
    """Every child works in its folder `now`."""
    config: Config
    digests: dict[str, str]
    """Stage to artifact."""
    keys: dict[str, str]
    lengths: dict[str, Length]
    """Stage to its length; the first stage of a process takes longer, because it imports."""


def undisturbed(folder: Path) -> Reference:
    """Run a night that nothing disturbs."""
    now = folder / "now"
    now.mkdir(parents=True, exist_ok=True)
    config = micro_config(now / "state")
    finished(folder / "log", night, config)
    store = Store(config.state)
    shutil.copytree(config.state, folder / "done")
    records = all_records(store)
    keys = {record.stage: record.key for record in records}
    return Reference(
        folder,
        config,
        digests={record.stage: record.digest for record in records},
        keys=keys,
        lengths={name: length_of(folder / "log", _phase(name, keys[name])) for name in STAGES},
    )


def night(config: Config) -> None:
    """What every child does, the one that is killed and the one after it."""
    run_chain(config)


def kills_in_stage(
    reference: Reference, stage: str, count: int, uniform: Callable[[], float]
) -> Iterator[Strike]:
    """Kill a stage at `count` moments; after each a plain run must end as if nothing had been.

    Raises:
        AssertionError: If something is not as in the undisturbed night.
    """
    config, log = reference.config, reference.folder / "log"
    key, phase = reference.keys[stage], phase_of(reference, stage)
    length = reference.lengths[stage]
    if count > 1:
        # Some come at a time, which must be that of this stage alone.
        restore(reference, stage)
        finished(log, night, config)
        length = length_of(log, phase)
    for moment in moments(length, count, uniform):
        before = partial(restore, reference, stage)
        strike = struck(log, phase, moment, before, night, config)
        left = what_is_left(Store(config.state), key)
        finished(log, night, config)
        check(reference)
        yield replace(strike, came=f"left: {left or 'nothing'}")


def phase_of(reference: Reference, stage: str) -> Phase:
    return _phase(stage, reference.keys[stage])


def _phase(stage: str, key: str) -> Phase:
    """Know a stage by what it writes down of its attempt."""
    return Phase(stage, rf"attempts/.*{key}", rf"remove state/attempts/{key}.json")


def restore(reference: Reference, stage: str) -> None:
    """Make the state that was there before a stage, at the same place."""
    state = reference.config.state
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(reference.folder / "done", state)
    store = Store(state)
    store.record_path(reference.keys[stage]).unlink()
    shutil.rmtree(store.object_path(reference.digests[stage]))
    if stage == "evaluate":
        # Or no model would be asked anything.
        for path in answer_notes(store):
            shutil.rmtree(store.object_path(read_kept(store, path).digest))
            path.unlink()


def check(reference: Reference) -> None:
    """Compare a state with that of the undisturbed night, and look for what a kill left.

    Raises:
        AssertionError: Naming what differs.
    """
    store = Store(reference.config.state)
    records = all_records(store)
    found = sorted((record.stage, record.digest) for record in records)
    assert found == sorted(reference.digests.items()), f"other bytes: {found}"
    problems = examine(store, deep=True).problems
    assert problems == (), f"not whole: {problems}"
    objects = {path.name for path in store.objects.glob("*/*")}
    answers = {read_kept(store, path).digest for path in answer_notes(store)}
    assert objects == {*reference.digests.values(), *answers}, f"other artifacts: {objects}"
    left = leftovers(store)
    assert left == [], f"left behind: {left}"


def leftovers(store: Store) -> list[str]:
    """Name what only a process at work may have in a store."""
    drafts = [*store.tmp.glob("*"), *store.work_path("x").parent.glob("*")]
    attempts = store.attempt_path("x").parent.glob("*.json")
    return sorted(str(path.relative_to(store.root)) for path in [*drafts, *attempts])


def what_is_left(store: Store, key: str) -> str:
    """Say what a kill left of a stage's work."""
    found = [f"draft of {_files(path)} files" for path in store.tmp.glob("*")]
    found += [
        f"scratch of {_files(path)} files" for path in [store.work_path(key)] if path.exists()
    ]
    if store.record_path(key).exists():
        found.append("record")
    if store.attempt_path(key).exists():
        found.append("attempt")
    return ", ".join(found)


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))
