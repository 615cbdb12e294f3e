"""What a look before an earlier night found right, so that a cached night does not pay again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from requant.canonical import digest_of
from requant.preflight.problem import Problem
from requant.store import Store
from requant.store.durable import write_durably


def unless_known(
    state: Path, what: Mapping[str, Any], look: Callable[[], list[Problem]]
) -> list[Problem]:
    """Look, unless exactly this was found right before; problems are never remembered.

    Args:
        state: State folder; it is not made for a look alone.
        what: Everything the outcome depends on, as JSON.
        look: The costly check.
    """
    mark = Store(state.resolve()).preflight_path(digest_of(dict(what)))
    if mark.exists():
        return []
    problems = look()
    if not problems and state.is_dir():
        mark.parent.mkdir(exist_ok=True)
        write_durably(mark, b"")
    return problems


def stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of each file of a folder: what must differ where content does."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
