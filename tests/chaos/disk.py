"""A disk that becomes full while something is published: a real one of some megabytes."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from requant.store import Store
from requant.store.health import examine
from tests.chaos import services, stages
from tests.chaos.services import Line
from tests.chaos.stages import Reference
from tests.chaos.strikes import (
    BALLAST,
    PATIENCE_SECONDS,
    Fault,
    Length,
    Phase,
    Strike,
    child,
    finished,
    kill,
    moments,
    strike_of,
    tail,
)

SIZE = "24m"
SPARE_PAGES = 4
"""At most so many pages are free: some of what is written fits, some does not."""


def mountable() -> bool:
    """Tell whether this user may mount a disk: root alone."""
    return os.geteuid() == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put a small disk in the place of a folder for a block."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_in_stage(
    reference: Reference, stage: str, count: int, uniform: Callable[[], float]
) -> Iterator[Strike]:
    """Fill the disk while a stage writes its artifact or its record; see `_full_in`."""
    yield from _full_in(
        reference.folder,
        stages.phase_of(reference, stage),
        reference.lengths[stage],
        count,
        uniform,
        before=partial(stages.restore, reference, stage),
        check=partial(stages.check, reference),
        given=(stages.night, reference.config),
    )


def full_in_service(
    line: Line, phase: Phase, count: int, uniform: Callable[[], float]
) -> Iterator[Strike]:
    """Fill the disk of state and deployment in promote or deploy; see `_full_in`."""

    def check() -> None:
        services.compare(line, phase)
        services.check(line)

    yield from _full_in(
        line.folder,
        phase,
        line.lengths[phase.name],
        count,
        uniform,
        before=partial(services.restore, line, phase),
        check=check,
        given=(services.command, line.server, *services.words(line, phase)),
    )


def _full_in(
    folder: Path,
    phase: Phase,
    length: Length,
    count: int,
    uniform: Callable[[], float],
    *,
    before: Callable[[], None],
    check: Callable[[], None],
    given: tuple[Any, ...],
) -> Iterator[Strike]:
    """Let the disk become full before `count` writes of a phase; then free it and run again.

    Raises:
        AssertionError: If the error does not say what is full and the way out, something is half
            done, or the second run does not end as if nothing had been.
    """
    log, now = folder / "log", folder / "now"
    for moment in moments(length, count, uniform, timed=lambda _: False):
        assert moment.write is not None
        # There still where the last scene failed.
        (now / BALLAST).unlink(missing_ok=True)
        before()
        # Mostly none.
        pages = max(0, int(uniform() * 2 * SPARE_PAGES) - SPARE_PAGES)
        fault = Fault(phase.begins, moment.write, leaves_pages=pages)
        process = child(log, *given, fault=fault)
        process.join(PATIENCE_SECONDS)
        if process.exitcode is None:
            kill(process)
        strike, said = strike_of(log, phase, moment), tail(log)
        assert process.exitcode in {0, 1, 2}, f"ended with {process.exitcode}:\n{said}"
        if process.exitcode:
            expected = ("the disk of", "is full", "Free space", "run again")
            missing = [text for text in expected if text not in said]
            assert not missing, f"full before {strike.before!r}: {missing} not in\n{said}"
        problems = examine(Store(now / "state"), deep=True).problems
        assert problems == (), f"not whole: {problems}"
        (now / BALLAST).unlink()
        finished(log, *given)
        check()
        ended = "an error said so" if process.exitcode else "the rest of it fitted"
        yield replace(strike, fault=f"full: {phase.name}", came=ended)
