"""Does lm-eval know the tasks, and can models be compared on those that guard?"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.config import Config
from requant.config.fit import generated_tasks
from requant.config.task_names import HELDOUT_PERPLEXITY, PAST_PERPLEXITY
from requant.errors import ArtifactError, ConfigError
from requant.evaluation.own_tasks import own_tasks
from requant.evaluation.task_index import corpus_only, leaf_tasks
from requant.preflight.known_looks import unless_known
from requant.preflight.problem import Problem
from requant.store import Store, all_records, describe
from requant.store.looks import read_looks
from requant.wording import few

VERSION = 5
"""Raised with every change of what is looked for: what an earlier look found right is forgotten."""


def evaluation_problems(config: Config) -> Iterator[Problem]:
    """Look the names in `evaluate.tasks` up, and the guards that are not made from the data."""
    section = config.evaluate
    folder = section.task_folder
    if not section.enabled:
        return
    yield from _past_alone(config)
    if config.promote.auto:
        # Otherwise a whole night would end in nothing but this error.
        try:
            read_looks(Store(config.state.resolve()), config.name)
        except ArtifactError as error:
            yield Problem("promote.auto", str(error))
    if not (section.tasks or folder):
        return
    try:
        own = own_tasks(folder, code=section.task_code) if folder else {}
        files = describe(folder).digest if folder else ""
    except (ConfigError, ArtifactError) as error:
        yield Problem("evaluate.task_folder", str(error).removeprefix("evaluate.task_folder: "))
        return
    made = generated_tasks(config)
    # A misspelt one would be found on the day that promote.auto is switched on.
    gate = section.gate
    named = (*(gate.guard or ()), *(gate.target or ()), *gate.floors)
    guard = [task for task in dict.fromkeys(named) if task not in made]
    what = {
        "look": "tasks",
        "version": VERSION,
        "tasks": list(section.tasks),
        "task_folder": files,
        "guard": guard,
        "lm_eval": version("lm_eval"),
    }
    if taken := sorted(own.keys() & set(made)):
        yield Problem(
            "evaluate.task_folder",
            f"{own[taken[0]]} defines {taken[0]!r}, which is a task made from the data; rename it",
        )
        return
    if own and not own.keys() & set(section.tasks):
        text = f"{folder} defines {few(sorted(own))}, and evaluate.tasks names none of them"
        yield Problem("evaluate.task_folder", f"{text}; name those that are to be evaluated")
        return
    yield from unless_known(
        config.state, what, lambda: task_problems(_index(folder), section.tasks, guard, made)
    )


def _past_alone(config: Config) -> Iterator[Problem]:
    """Say where the gate is to judge by earlier nights' rows alone, and there were none."""
    gate = config.evaluate.gate
    alone = [
        field
        for field, tasks in (("guard", gate.guard), ("target", gate.target))
        if tasks == (PAST_PERPLEXITY,)
    ]
    if alone and not any(
        record.stage == "prepare_data" and record.labels.get("pipeline") == config.name
        for record in all_records(Store(config.state.resolve()))
    ):
        yield Problem(
            f"evaluate.gate.{alone[0]}",
            f"[{PAST_PERPLEXITY}] alone, and no night of {config.name} is in {config.state}, so "
            f"nothing could be judged by it; name {HELDOUT_PERPLEXITY} too, or null for all",
        )


def task_problems(
    index: Mapping[str, Any], tasks: Sequence[str], guard: Sequence[str], made: Sequence[str]
) -> list[Problem]:
    """Say what of the named tasks cannot be run, and by which of the gate nothing is judged.

    Args:
        index: `lm_eval.tasks.TaskManager.task_index`.
        tasks: `evaluate.tasks`.
        guard: What `evaluate.gate` names that is not among `made`.
        made: Tasks that are generated.
    """
    known = [task for task in tasks if task in index]
    problems = [_unknown(index, task) for task in tasks if task not in index]
    leaves: dict[str, str] = {}
    for task in dict.fromkeys(known):
        for leaf in leaf_tasks(index, task):
            if leaf in leaves:
                text = f"{leaf!r} is part of both {leaves[leaf]!r} and {task!r}; keep one of them"
                problems.append(Problem("evaluate.tasks", text))
                break
            leaves[leaf] = task
    for leaf in leaves:
        entry = index.get(leaf)
        if entry and (entry.cfg or {}).get("unsafe_code"):
            text = f"{leaf!r} runs code that the model writes, which requant does not; leave it out"
            problems.append(Problem("evaluate.tasks", text))
    for name in guard:
        why = _unguarding(index, name, leaves, [*made, *leaves])
        problems += [Problem("evaluate.gate", why)] if why else []
    return problems


@cache
def _index(folder: Path | None) -> Mapping[str, Any]:
    """Index lm-eval's own tasks and the user's: thousands of files, seconds each time."""
    from requant.evaluation.lm_eval import task_manager

    with TemporaryDirectory() as empty:
        found: Mapping[str, Any] = task_manager(folder or Path(empty), (), defaults=True).task_index
    return found


def _unknown(index: Mapping[str, Any], task: str) -> Problem:
    near = difflib.get_close_matches(task, index, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return Problem(
        "evaluate.tasks", f"lm-eval has no {task!r}; {hint}`lm-eval ls tasks` prints the names"
    )


def _unguarding(
    index: Mapping[str, Any], name: str, leaves: Mapping[str, str], evaluated: Sequence[str]
) -> str | None:
    """Say why a task guards nothing; None where it does."""
    if name in leaves:
        metrics = corpus_only(index, name)
        if not metrics:
            return None
        return (
            f"{name!r} is scored by {', '.join(metrics)}, of all documents at once, so that models "
            "cannot be compared document by document; judge by another task"
        )
    if name in index and (members := [leaf for leaf in leaf_tasks(index, name) if leaf in leaves]):
        return (
            f"{name!r} is a group, and models are compared task by task; name some of its "
            f"{len(members)} members: {few(members)}"
        )
    near = difflib.get_close_matches(name, evaluated, n=3) or evaluated[:5]
    return f"{name!r} is not evaluated; of this night's tasks did you mean {' or '.join(near)}?"
