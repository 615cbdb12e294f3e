"""What is known of lm-eval's tasks before their data is there, by its real index of real files."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from requant.evaluation.task_index import corpus_only, leaf_tasks
from requant.preflight.evaluation import task_problems

FILES: dict[str, dict[str, Any]] = {
    "translate": {"task": "translate", "tag": ["words"], "metric_list": [{"metric": "bleu"}]},
    "choose": {
        "task": "choose",
        "tag": ["words"],
        "metric_list": [{"metric": "f1"}, {"metric": "acc", "aggregation": "mean"}],
    },
    "own_f1": {"task": "own_f1", "metric_list": [{"metric": "f1", "aggregation": "mean"}]},
    "program": {"task": "program", "unsafe_code": True},
    "all": {"group": "all", "task": ["words", {"task": "own_f1"}, {"task": "inside"}]},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    for name, content in FILES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    found: Mapping[str, Any] = TaskManager(
        include_path=str(folder), include_defaults=False
    ).task_index
    return found


def test_a_name_stands_for_its_leaves(index: Mapping[str, Any]) -> None:
    assert leaf_tasks(index, "choose") == ["choose"]
    assert leaf_tasks(index, "words") == ["choose", "translate"]
    assert leaf_tasks(index, "all") == ["choose", "translate", "own_f1", "all::inside"]


def test_a_metric_of_all_documents_at_once_is_known_from_the_file(index: Mapping[str, Any]) -> None:
    assert corpus_only(index, "translate") == ("bleu",)
    assert corpus_only(index, "choose") == ()
    assert corpus_only(index, "own_f1") == ()


@pytest.mark.parametrize(
    ("tasks", "guard", "text"),
    [
        (("chose",), (), "evaluate.tasks: lm-eval has no 'chose'; did you mean choose?"),
        (("cho*",), (), "evaluate.tasks: lm-eval has no 'cho*'"),
        (("choose", "all"), (), "'choose' is part of both 'choose' and 'all'; keep one of them"),
        (("program",), (), "'program' runs code that the model writes"),
        (("choose",), ("chose",), "evaluate.gate: 'chose' is not evaluated; of this night's tasks"),
        (("choose",), ("own_f1",), "evaluate.gate: 'own_f1' is not evaluated"),
        (("all",), ("words",), "evaluate.gate: 'words' is a group, and models are compared task "),
        (
            ("all",),
            ("translate",),
            "evaluate.gate: 'translate' is scored by bleu, of all documents at once",
        ),
    ],
)
def test_what_cannot_run_or_guard_is_found(
    index: Mapping[str, Any], tasks: tuple[str, ...], guard: tuple[str, ...], text: str
) -> None:
    (problem,) = task_problems(index, tasks, guard, ("old_perplexity",))
    assert text in str(problem)


def test_what_can_run_and_guard_is_no_problem(index: Mapping[str, Any]) -> None:
    assert task_problems(index, ("all",), ("choose", "own_f1"), ("old_perplexity",)) == []
