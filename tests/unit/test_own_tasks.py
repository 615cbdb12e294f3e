"""Task files of the user's own: refused by file and reason, before lm-eval reads them."""

from pathlib import Path

import pytest
import yaml

from requant.errors import ConfigError
from requant.evaluation.own_tasks import copy_own_tasks, own_tasks
from requant.outside.yaml_text import Function, parse_yaml

TASK = {
    "task": "ours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "ours.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "ours.yaml").write_text(yaml.safe_dump(TASK))
    (folder / "ours.jsonl").write_text("{}\n")
    return folder


def test_the_names_of_tasks_and_groups_are_found(folder: Path) -> None:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "both.yml").write_text("group: both\ntask: [ours]\n")
    assert sorted(own_tasks(folder, code=False)) == ["both", "ours"]


def test_data_is_found_beside_its_task_wherever_the_night_runs(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "code.yaml").write_text("task: code\nprocess_docs: !function utils.prepare\n")
    copy_own_tasks(folder, tmp_path / "work")
    copied = parse_yaml((tmp_path / "work" / "own" / "ours.yaml").read_text())
    found = Path(copied["dataset_kwargs"]["data_files"]["test"])
    assert found.is_absolute()
    assert found.read_text() == "{}\n"
    text = (tmp_path / "work" / "own" / "code.yaml").read_text()
    assert parse_yaml(text, functions=True)["process_docs"] == Function("utils.prepare")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "code.yaml",
            "task: code\nprocess_docs: !function utils.prepare\n",
            r"code\.yaml names functions \(utils.prepare\), and lm-eval runs their Python file; "
            r"evaluate\.task_code: true allows it",
        ),
        (
            "deep.yaml",
            "task: deep\nmetric_list:\n- metric: !function utils.best\n",
            r"names functions \(utils.best\)",
        ),
        ("twice.yaml", "task: ours\n", r"both define 'ours'; rename one"),
        (
            "more.yaml",
            "include: ../../etc/x.yaml\ntask: more\n",
            r"reads '../../etc/x.yaml', which",
        ),
        (
            "far.yaml",
            "task: far\ndataset_kwargs: {data_files: [/etc/passwd]}\n",
            r"reads '/etc/passwd', which lies outside of the folder",
        ),
        ("bomb.yaml", "a: &a [1]\nb: *a\n", r"bomb\.yaml is no YAML: line 2, column 4: an alias"),
        ("python.yaml", "task: !!python/name:os.system\n", r"python\.yaml is no YAML"),
        ("list.yaml", "- task\n", r"list\.yaml holds list; expected the fields of a task"),
    ],
)
def test_what_cannot_be_used_is_named(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"^evaluate\.task_folder: .*{said}"):
        own_tasks(folder, code=False)


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"defines no task; expected \.yaml files with a field"):
        own_tasks(tmp_path, code=False)
    with pytest.raises(
        ConfigError, match=r"is no folder; give one with lm-eval task files \(\.yaml\)"
    ):
        own_tasks(tmp_path / "nothing", code=False)
