"""What a configuration names from outside, looked at in a process that can be stopped."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial, update_wrapper
from typing import Any

from requant.config import Config
from requant.config.base import FolderBase, HubBase, StdlibBase
from requant.config.data import HubData, StdlibData
from requant.errors import RequantError
from requant.hub import resolve_commit
from requant.machine.looking import MEMORY, Look, Watch, look
from requant.preflight.base import FIELD, base_problems, door_problems
from requant.preflight.data import MEMORY_PER_BYTE, data_bytes, data_problems
from requant.preflight.known_looks import stamps, unless_known
from requant.preflight.problem import Problem, checked
from requant.preflight.written import written_problems
from requant.stages import prepare_data

VERSION = 12
"""Raised with every change of what is looked for: what an earlier look found right is forgotten."""
ELSEWHERE = ("name", "state", "runtime", "tracking", "deploy")
"""Sections that say nothing of base and rows."""
HUB_MEMORY = 64 << 30
"""For a dataset of the hub, whose size is not known before."""


def outside_problems(config: Config) -> Iterator[Problem]:
    """Check base and rows, and what must fit them.

    What the project makes itself is looked at here and now.
    """
    source, data = config.prepare_base.source, config.prepare_data.source
    if isinstance(source, StdlibBase) and isinstance(data, StdlibData):
        yield from base_problems(config)
        yield from data_problems(config)
        return
    try:
        what = {
            "look": "outside",
            "version": VERSION,
            "base": _base_mark(config),
            "data": prepare_data.content_digests(config.prepare_data),
            "config": config.model_dump(mode="json", exclude=set(ELSEWHERE)),
            "smoke_prompt": config.deploy.smoke_prompt,
        }
    except RequantError:
        # Something is missing: that is what the look will tell, with all that is wrong beside it.
        yield from _looked_at(config)
        return
    yield from unless_known(config.state, what, lambda: _looked_at(config))


def look_from_child(argument: dict[str, Any], watch: Watch) -> list[dict[str, Any]]:
    """Do both checks; in the process of `requant.machine.looking`.

    Args:
        argument: The configuration.
        watch: Is told of each piece of the work.
    """
    config = Config.model_validate(argument)

    def found(check: Callable[..., Iterator[Problem]], **more: bool) -> list[Problem]:
        return checked(update_wrapper(partial(check, watch=watch, **more), check), config)

    # What the door did not let in nobody else reads.
    door = found(door_problems)
    others = [] if door else [*found(base_problems), *found(written_problems)]
    return [asdict(problem) for problem in (*door, *others, *found(data_problems, base=not door))]


def _looked_at(config: Config) -> list[Problem]:
    memory = MEMORY + MEMORY_PER_BYTE * data_bytes(config)
    if isinstance(config.prepare_data.source, HubData):
        memory = HUB_MEMORY
    asked = Look(f"{__name__}:{look_from_child.__name__}", config.model_dump(mode="json"), memory)
    return [Problem(**found) for found in look(asked)]


def _base_mark(config: Config) -> Any:
    source = config.prepare_base.source
    if isinstance(source, FolderBase):
        folder = source.path.resolve()
        return {"folder": str(folder), "files": stamps(folder) if folder.is_dir() else None}
    if isinstance(source, HubBase):
        return resolve_commit(source.repo, source.revision, "model", FIELD)
    return None
