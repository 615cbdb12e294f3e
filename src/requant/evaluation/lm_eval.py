"""Run lm-eval on a model."""

import glob
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

from requant.config.evaluation import Evaluate
from requant.errors import ConfigError
from requant.evaluation import after_question
from requant.evaluation.blocks import Ids
from requant.evaluation.lm_eval_model import Tell, infinite_perplexities, without_environment
from requant.evaluation.own_tasks import copy_own_tasks, own_tasks
from requant.evaluation.scores import Ran, TaskScores, task_scores
from requant.evaluation.tasks import AFTER_QUESTION, units
from requant.machine.library_noise import no_library_noise
from requant.outside.tokenizer_patterns import naming_patterns

BOOTSTRAP_ITERATIONS = 1000


def local_tasks(folder: Path, work: Path) -> dict[str, list[list[int]]]:
    """Copy generated task files to `work` with absolute paths, as lm-eval needs them.

    Args:
        folder: `<task>.yaml` and `<task>.jsonl` files.
        work: Gets the copies; `datasets` keeps its cache there too.

    Returns:
        Task -> its units, each the places of its documents.
    """
    import yaml

    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        task = yaml.safe_load(path.read_text())
        given = task["dataset_kwargs"]["data_files"]
        files = {
            # `datasets` takes a path for a pattern.
            split: glob.escape(str((folder / name).resolve()))
            for split, name in given.items()
        }
        task["dataset_kwargs"] = {"data_files": files, "cache_dir": str(work / "datasets")}
        text = yaml.safe_dump(task, sort_keys=False)
        if "doc_to_choice" not in task and task["output_type"] == AFTER_QUESTION:
            # No file of a dataset names code that is run.
            text += after_question.FIELDS
        (work / path.name).write_text(text)
        lines = [line for name in given.values() for line in (folder / name).open()]
        found[str(task["task"])] = units(list(map(json.loads, lines)))
    return found


def manager_of(section: Evaluate, work: Path, tasks: Sequence[str]) -> Any:
    """Index the task files in `work`, the user's own, and lm-eval's where a name is none of theirs.

    Args:
        section: Says where the user's own are; they are copied to `work`.
        work: Of task files.
        tasks: Named ones.

    Raises:
        ConfigError: As `own_tasks` and `task_manager`.
    """
    own = own_tasks(section.task_folder, code=section.task_code) if section.task_folder else {}
    if section.task_folder:
        copy_own_tasks(section.task_folder, work)
    return task_manager(work, tasks, defaults=not own.keys() >= set(tasks))


def task_manager(work: Path, tasks: Sequence[str], *, defaults: bool) -> Any:
    """Index the copies in `work`; tasks are loaded, with their documents, once for all models.

    Args:
        work: Of task files.
        tasks: Named ones.
        defaults: Index lm-eval's own tasks too, thousands of files.

    Raises:
        ConfigError: If lm-eval has no task of a name.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(work), include_defaults=defaults)
    # Patterns such as arc_* are for its command line alone.
    unknown = [task for task in tasks if task not in manager.task_index]
    if unknown:
        raise ConfigError(
            f"evaluate.tasks: lm-eval has no {', '.join(map(repr, unknown))}; "
            "`lm-eval ls tasks` prints the names"
        )
    load = manager.load
    loaded: dict[tuple[str, ...], Any] = {}

    def load_once(names: list[str]) -> Any:
        if tuple(names) not in loaded:
            loaded[tuple(names)] = load(names)
        return loaded[tuple(names)]

    manager.load = load_once
    return manager


def score_model(
    model: Any,
    tasks: Sequence[str],
    manager: Any,
    *,
    name: str,
    few_shot: int | None,
    limit: int | None,
    documents: Ids | None,
    chat_template: bool,
    seed: int,
    tell: Tell = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, TaskScores]:
    """Evaluate a model on tasks.

    Args:
        model: From `requant.evaluation.answering.answering_model`.
        tasks: Names `manager` knows.
        manager: From `task_manager`.
        name: Of the model, for the error's text.
        few_shot: Examples in the prompt; None leaves it to the task.
        limit: Documents per task; None: all.
        documents: Those of each task that are asked, whatever `limit`; None: its first ones.
        chat_template: Render prompts through the tokenizer's chat template.
        seed: Of few-shot sampling and bootstrap.
        tell: Hears how many of lm-eval's requests are done.
        say: Hears what was cut, and which figure is too large for a number.

    Raises:
        ParityError: If a score is not finite, naming model, task and document.
    """
    from lm_eval import simple_evaluate

    # lm-eval's bars go to stderr whatever the log level.
    with (
        no_library_noise(),
        without_environment(),
        infinite_perplexities(),
        redirect_stderr(io.StringIO()),
        naming_patterns(model.tokenizer, f"evaluate: {name}"),
    ):
        model.tell = tell
        model.cut_prompts = model.cut_answers = 0
        results = simple_evaluate(
            model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=few_shot,
            limit=None if documents else limit,
            samples=None if documents is None else {t: [*ids] for t, ids in documents.items()},
            log_samples=True,
            apply_chat_template=chat_template,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    assert results is not None  # only other ranks of a distributed run get None
    if model.cut_prompts:
        say(
            f"{name}: {model.cut_prompts} requests are longer than the model's positions: their "
            f"prompts lost tokens from the beginning, {model.cut_answers} answers from the end"
        )
    template = _digest(model.tokenizer.chat_template) if chat_template else None
    ran = Ran(name, few_shot, limit, template, f"lm_eval {version('lm_eval')}")
    return {task: task_scores(ran, task, results, say) for task in sorted(results["results"])}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
