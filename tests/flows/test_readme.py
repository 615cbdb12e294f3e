"""The README's "Your own model", run as it says, on a base and in files nobody here made for it."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from requant.config.base import PrepareBase
from requant.config.loading import load_config
from requant.corpus import docstrings, instruction
from requant.execution.stage import StageContext
from requant.stages import prepare_base
from requant.store import Store, all_records
from tests.support.chain import MICRO, Silent
from tests.support.commands import requant, states
from tests.support.stages import all_stages

ROOT = Path(__file__).parents[2]
SMALL = (
    "runtime.device=cpu",
    "runtime.launcher=inline",
    "train_adapter.optimisation={max_steps: 6, batch_size: 4, "
    "learning_rate: 4.0e-3, max_length: 96}",
    "continue_train.layers=1",
    "continue_train.optimisation={max_steps: 2, batch_size: 4, "
    "learning_rate: 1.0e-4, max_length: 96}",
    "requantize_gptq.group_size=64",
    "requantize_gptq.calibration_rows=8",
    "requantize_gptq.calibration_length=96",
    "requantize_gptq.fidelity_max_kl=2",
    "merge_fp16.trained_max_kl=2",
    "merge_fp16.trained_max_gain_lost=9",
    "prepare_data.max_evaluation_rows=8",
    "prepare_data.heldout_fraction=0.2",
)
"""What a machine without a GPU needs of the recipes, and what a model of 0.2 million parameters."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained model, as somebody else's."""
    folder = tmp_path_factory.mktemp("base")
    out, work = folder / "my-model", folder / "work"
    out.mkdir()
    work.mkdir()
    section = PrepareBase.model_validate(yaml.safe_load(MICRO)["prepare_base"])
    prepare_base.execute(section, StageContext(out, work, 0, "cpu", Silent()))
    return out


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of a person who followed the README."""
    for name in ("flows", "tasks", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(count: int) -> list[tuple[str, str]]:
    return [(instruction(item), item.summary) for item in docstrings()[:count]]


def night(recipe: str, base: Path, *changes: str, fails: int = 0) -> str:
    """Run a recipe as the README does, with what this machine needs."""
    source = f"prepare_base.source={{kind: folder, path: {base}}}"
    words = [word for change in (source, *SMALL, *changes) for word in ("--set", change)]
    return requant("run", f"configs/{recipe}.yaml", *words, fails=fails)


def test_a_recipe_runs_on_a_file_of_conversations(project: Path, base: Path) -> None:
    rows = (
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs(60)
    )
    lines = (json.dumps({"messages": row}) + "\n" for row in rows)
    (project / "data/night.jsonl").write_text("".join(lines))

    output = night("qwen3-0.6b", base, "train_adapter.rank=8")

    config = load_config(Path("configs/qwen3-0.6b.yaml"))
    assert states(output) == all_stages("done", config)
    assert "version 1: challenger" in output
    again = night("qwen3-0.6b", base, "train_adapter.rank=8")
    assert states(again) == all_stages("cached", config)


def test_a_recipe_runs_on_parquet_with_columns_of_its_own(project: Path, base: Path) -> None:
    question, answer = zip(*pairs(60), strict=True)
    columns = {"question": question, "answer": answer}
    Dataset.from_dict(columns).to_parquet(project / "data/night.parquet")

    output = night(
        "qwen1.5-14b-chat",
        base,
        "prepare_data.source.train=[data/night.parquet]",
        "prepare_data.columns={messages: null, prompt: question, response: answer}",
    )

    config = load_config(Path("configs/qwen1.5-14b-chat.yaml"))
    assert not config.continue_train.enabled
    assert states(output) == all_stages("done", config)


def test_a_missing_data_file_is_refused_before_any_work(project: Path) -> None:
    source = "prepare_data.source={kind: files, train: [none.jsonl]}"
    output = requant("run", "configs/tiny.yaml", "--set", source, fails=2)
    assert "prepare_data.source.train.0: none.jsonl is not a file; give an existing one" in output
    assert all_records(Store(project / ".requant")) == []
