"""All places where chaos strikes, and what each needs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.chaos import disk, ledger, services, stages, starts
from tests.chaos.ledger_line import base_in
from tests.chaos.strikes import Strike

Uniform = Callable[[], float]


@dataclass(frozen=True)
class Scene:
    """One place."""

    name: str
    play: Callable[[Uniform], Iterator[Strike]]


def scenes(folder: Path, count: int, only: str = "") -> Iterator[Scene]:
    """Yield every place whose name holds a text, with what it needs standing ready.

    Args:
        folder: Empty; all lies below it.
        count: Of kills, or full disks, in each place.
        only: The text.
    """
    for group, names in GROUPS.items():
        wanted = [name for name in names if only in name]
        if wanted:
            yield from group(folder / group.__name__, wanted, count)


def _stages(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    reference = stages.undisturbed(folder)
    for name in names:
        yield Scene(name, partial(stages.kills_in_stage, reference, name, count))


def _services(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    with services.prefect(folder) as server:
        line = services.line(folder, server)
        for name in names:
            yield Scene(name, partial(services.kills_in, line, PHASES[name], count))


def _ledgers(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    base = base_in(folder / "base")
    for name in names:
        yield Scene(name, partial(ledger.kills_in_nights, folder / "line", base, count))


def _starts(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    for name in names:
        place = folder / name.replace(" ", "-")
        yield Scene(name, partial(starts.kills_at_start, place, name, count))


def _full_stages(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    with disk.small_disk(folder / "now"):
        reference = stages.undisturbed(folder)
        for name in names:
            stage = name.removeprefix(FULL)
            yield Scene(name, partial(disk.full_in_stage, reference, stage, count))


def _full_services(folder: Path, names: list[str], count: int) -> Iterator[Scene]:
    with services.prefect(folder) as server, disk.small_disk(folder / "now"):
        line = services.line(folder, server)
        for name in names:
            phase = PHASES[name.removeprefix(FULL)]
            yield Scene(name, partial(disk.full_in_service, line, phase, count))


FULL = "full: "
PHASES = {phase.name: phase for phase in (services.PROMOTE, services.DEPLOY)}
GROUPS: dict[Callable[[Path, list[str], int], Iterator[Scene]], list[str]] = {
    _stages: list(stages.STAGES),
    _services: list(PHASES),
    _ledgers: ["ledger"],
    _starts: list(starts.STARTS),
    _full_stages: [FULL + name for name in stages.STAGES] if disk.mountable() else [],
    _full_services: [FULL + name for name in PHASES] if disk.mountable() else [],
}
"""What makes places ready, and their names. Only root may mount a small disk."""
