"""A kill -9 of a real process at a chosen moment, and what it left.

What a process writes is traced: every file of its folders that it opens for writing, renames or
removes, and every statement that changes a database. So a kill can strike between two writes that
lie a millisecond apart, and a person can read between which.
"""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300.0
ATTEMPTS = 8
WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.utime",
    "os.chmod",
}
"""Audit events of what changes a folder; see https://docs.python.org/3/library/audit_events.html"""


@dataclass(frozen=True)
class Strike:
    """One kill, or one full disk, and what came of the plain run after it."""

    fault: str
    """Where: a stage, promote, deploy, a first start."""
    seconds: float
    """After that began."""
    fraction: float
    """The share of the undisturbed length that was over, in writes or in seconds."""
    before: str = ""
    """The write it came before; empty where it came between two, at a random time."""
    came: str = ""
    """What was half done, or how it ended."""

    def __str__(self) -> str:
        before = re.sub(r"[0-9a-f]{32,64}", lambda digest: digest[0][:8], self.before)
        where = f"before `{before}`" if before else "at a random time"
        moment = f"{self.seconds:6.2f} s ({self.fraction:4.0%})"
        return f"{self.fault:16} {moment}  {where}; {self.came}"


@dataclass(frozen=True)
class Moment:
    """When to kill: before a write by its number, or some seconds after a phase began."""

    fraction: float
    write: int | None = None
    seconds: float = 0.0

    def earlier(self) -> "Moment":
        """Return the moment for a process that was quicker than the one that was measured."""
        write = None if self.write is None else max(1, self.write - 1)
        return Moment(self.fraction * 0.8, write, self.seconds * 0.8)


@dataclass(frozen=True)
class Fault:
    """What befalls a process before one of its writes."""

    begins: str
    """Pattern of the write from which they are counted."""
    write: int
    """The number of the write it befalls; 1 is the first after that one."""
    leaves_pages: int | None = None
    """None for a kill, else the disk is full from there on but for so many pages."""
    only: str = ""
    """Pattern of the writes that are counted."""


@dataclass(frozen=True)
class Phase:
    """A part of what a process does, known by the writes that begin and end it."""

    name: str
    begins: str
    """Pattern of its first write."""
    ends: str
    """Pattern of its last write."""


@dataclass(frozen=True)
class Length:
    """The undisturbed length of a phase."""

    writes: int
    """Between its first and its last one."""
    seconds: float


def child(
    log: Path, target: Callable[..., None], *arguments: Any, fault: "Fault | None" = None
) -> BaseProcess:
    """Start a module-level function in a process of its own, forked from one that is warm.

    Args:
        log: Gets its output. The file beside it, `.trace`, gets its writes in the folder `now`
            beside it.
        target: What it does.
        arguments: Of the function.
        fault: What befalls it before one of its writes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.chain", "tests.support.libraries"])
    trace = trace_of(log)
    trace.unlink(missing_ok=True)
    process = context.Process(target=_traced, args=(log, fault, target, arguments))
    process.start()
    return process


def finished(log: Path, target: Callable[..., None], *arguments: Any) -> None:
    """Let a child do its work to the end."""
    process = child(log, target, *arguments)
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        kill(process)
    assert process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}:\n{tail(log)}"


def length_of(log: Path, phase: Phase) -> Length:
    """Measure a phase in the trace of a process that came to its end."""
    writes = trace(log)
    first = _first(writes, phase)
    last = max(i for i, (_, what) in enumerate(writes) if re.search(phase.ends, what))
    assert first < last, (phase, [what for _, what in writes])
    return Length(last - first, writes[last][0] - writes[first][0])


def _first(writes: Sequence[tuple[float, str]], phase: Phase) -> int:
    return next(i for i, (_, what) in enumerate(writes) if re.search(phase.begins, what))


def odd(number: int) -> bool:
    return bool(number % 2)


def moments(
    length: Length, count: int, uniform: Callable[[], float], timed: Callable[[int], bool] = odd
) -> Iterator[Moment]:
    """Spread moments over a phase: one before a write, one at a random time, and so on.

    Each lies at random in its own share of the phase, so that a few cover all of it.
    """
    for number in range(count):
        fraction = (number + uniform()) / count
        if timed(number):
            yield Moment(fraction, seconds=fraction * length.seconds)
        else:
            yield Moment(fraction, write=1 + int(fraction * length.writes))


def struck(
    log: Path,
    phase: Phase,
    moment: Moment,
    restore: Callable[[], None],
    target: Callable[..., None],
    *arguments: Any,
) -> Strike:
    """Kill a child in a phase of its work; earlier where it has come to its end by then.

    Args:
        log: Of the child.
        phase: What it does when it is killed.
        moment: When.
        restore: Makes the state before the phase.
        target: What the child does.
        arguments: Of the function.
    """
    for _ in range(ATTEMPTS):
        restore()
        strike = struck_once(log, phase, moment, target, *arguments)
        if strike is not None:
            return strike
        moment = moment.earlier()
    raise AssertionError(f"{phase.name} ended before every kill, the last one at {moment}")


def struck_once(
    log: Path,
    phase: Phase,
    moment: Moment,
    target: Callable[..., None],
    *arguments: Any,
    only: str = "",
) -> Strike | None:
    """Kill a child in a phase of its work; None where it has come to its end by then.

    Args:
        log: Of the child.
        phase: What it does when it is killed.
        moment: When.
        target: What the child does.
        arguments: Of the function.
        only: Pattern of the writes that the moment counts.
    """
    fault = None if moment.write is None else Fault(phase.begins, moment.write, only=only)
    process = child(log, target, *arguments, fault=fault)
    began = _began(log, phase, process)
    if moment.write is None and began is not None:
        time.sleep(max(0.0, began + moment.seconds - time.monotonic()))
        kill(process)
    process.join(PATIENCE_SECONDS)
    if process.exitcode == -signal.SIGKILL:
        return strike_of(log, phase, moment, only)
    assert process.exitcode == 0, f"ended with {process.exitcode}:\n{tail(log)}"
    return None


def strike_of(log: Path, phase: Phase, moment: Moment, only: str = "") -> Strike:
    """Say what a child had come to at its moment, by its trace."""
    if moment.write is None:
        return Strike(phase.name, moment.seconds, moment.fraction)
    writes = trace(log)
    first = _first(writes, phase)
    counted = [write for write in writes[first + 1 :] if re.search(only, write[1])]
    when, what = counted[moment.write - 1]
    return Strike(phase.name, when - writes[first][0], moment.fraction, what)


def kill(process: BaseProcess) -> None:
    """Kill a child alone, as a kernel without memory does: what it started must end by itself."""
    process.kill()
    process.join()


BALLAST = "ballast"
PAGE = 4096


def fill(folder: Path, pages: int) -> None:
    """Fill the disk of a folder with a file in it, but for some pages."""
    space = os.statvfs(folder)
    size = space.f_bavail * space.f_frsize - pages * PAGE
    # The first write of it is watched too, and there is no second one.
    with (folder / BALLAST).open("wb", buffering=0) as ballast, suppress(OSError):
        os.posix_fallocate(ballast.fileno(), 0, max(size, 1))


def trace_of(log: Path) -> Path:
    return log.with_suffix(".trace")


def trace(log: Path) -> list[tuple[float, str]]:
    """Read the writes of a process: when (monotonic seconds), and what."""
    path = trace_of(log)
    lines = path.read_text().splitlines() if path.exists() else []
    parts = (line.partition(" ") for line in lines)
    return [(float(when), what) for when, _, what in parts if what]


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _began(log: Path, phase: Phase, process: BaseProcess) -> float | None:
    """Wait until a phase begins; None where the process ended before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        alive = process.is_alive()
        for when, what in trace(log):
            if re.search(phase.begins, what):
                return when
        if not alive:
            return None
        time.sleep(0.005)
    raise AssertionError(f"{phase.name} did not begin:\n{tail(log)}")


def _traced(
    log: Path, fault: Fault | None, target: Callable[..., None], arguments: Sequence[Any]
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    _watch_writes((log.parent / "now").resolve(), trace_of(log), fault)
    target(*arguments)


def _watch_writes(folder: Path, path: Path, fault: Fault | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = -1

    def note(what: str) -> None:
        nonlocal count
        os.write(descriptor, f"{time.monotonic()} {what}\n".encode(errors="replace"))
        if fault is None or (count < 0 and not re.search(fault.begins, what)):
            return
        if count >= 0 and not re.search(fault.only, what):
            return
        count += 1
        if count == fault.write:
            if fault.leaves_pages is None:
                os.kill(os.getpid(), signal.SIGKILL)
            fill(folder, fault.leaves_pages)

    root = f"{folder}/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and event != "open":
            return
        name = arguments[0]
        if not isinstance(name, str | bytes | os.PathLike):
            return
        place = os.fsdecode(name)
        # A link's first argument is what it leads to.
        if event == "os.symlink":
            place = os.fsdecode(arguments[1])
        if not place.startswith(root) or (event == "open" and not _writes(*arguments[1:3])):
            return
        note(f"{event.removeprefix('os.')} {place.removeprefix(root)}")

    _watch_statements(note)
    sys.addaudithook(hook)


def _writes(mode: object, flags: object) -> bool:
    by_mode = isinstance(mode, str) and bool(set(mode) & set("wax+"))
    return by_mode or (isinstance(flags, int) and bool(flags & WRITING))


def _watch_statements(note: Callable[[str], None]) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def statement(_: Any, __: Any, text: str, *___: Any) -> None:
        if not text.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            note(f"sql {' '.join(text.split())[:60]}")

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", lambda _: note("sql COMMIT"))
