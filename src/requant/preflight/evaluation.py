"""Does lm-eval know the tasks, and can it score each document by a number?"""

from collections.abc import Iterator
from importlib.metadata import version
from tempfile import TemporaryDirectory

from requant.config import Config
from requant.preflight.memory import unless_known
from requant.preflight.problem import Problem


def evaluation_problems(config: Config) -> Iterator[Problem]:
    """Look the names in `evaluate.tasks` up; guards of names that are nowhere are found with it."""
    section = config.evaluate
    if not section.enabled or not section.tasks:
        return
    what = {"look": "tasks", "tasks": list(section.tasks), "lm_eval": version("lm_eval")}
    yield from unless_known(config.state, what, lambda: _unknown(section.tasks))


def _unknown(tasks: tuple[str, ...]) -> list[Problem]:
    import difflib
    from pathlib import Path

    from requant.evaluation import task_manager

    with TemporaryDirectory() as empty:
        # Any name that exists makes it index lm-eval's own.
        manager = task_manager(Path(empty), ("hellaswag",))
    known = list(manager.all_tasks)
    problems = []
    for task in tasks:
        if not manager.match_tasks([task]):
            near = difflib.get_close_matches(task, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else ""
            problems.append(
                Problem(
                    "evaluate.tasks",
                    f"lm-eval has no {task!r}; {hint} `lm-eval ls tasks` prints the names",
                )
            )
    return problems
