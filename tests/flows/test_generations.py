"""Two nights of a line that learns on: judged, promoted, compared on all nights, rolled back."""

import re
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from requant.corpus import docstrings, instruction
from requant.data.rows import conversation
from requant.store import Store
from requant.store.lines import read_line
from tests.support.chain import MICRO, promoting
from tests.support.commands import requant
from tests.support.ledger_nights import write_chats

ROWS = [conversation(instruction(item), item.summary) for item in docstrings()]
ALL = 400


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a line after two nights."""
    folder = tmp_path_factory.mktemp("generations")
    document = promoting(yaml.safe_load(MICRO))
    document |= {
        "state": str(folder / "state"),
        "collect_rows": {
            "enabled": True,
            "sources": [{"kind": "files", "name": "docs", "paths": [str(folder / "rows")]}],
        },
        "extend_ledger": {"heldout_fraction": 0.4, "max_rows": 64, "min_new_rows": 32},
        "generations": {"policy": "continue"},
        "prepare_data": {
            "source": {"kind": "collected"},
            "max_evaluation_rows": 32,
            "replay": {"rows": 0.2},
        },
        "continue_train": {**document["continue_train"], "enabled": False},
    }
    (folder / "line.yaml").write_text(yaml.safe_dump(document))
    write_chats(folder / "rows/all.jsonl", ROWS[:ALL])
    for _ in range(2):
        requant("run", folder / "line.yaml")
    return folder


def test_generations_are_listed_and_compared(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    line = read_line(Store(project / "state"), "micro")
    assert {night: outcome.verdict for night, outcome in line.nights.items()} == {
        1: "accepted",
        2: "accepted",
    }
    listed = requant("nights", project / "line.yaml")
    assert re.search(r"1 .* 64 .* original .* accepted", listed)
    assert re.search(r"2 .* 64 .* night 1 .* accepted .*, serves", listed)
    assert re.search(r"backward transfer [+-]0\.\d+ ± 0\.\d+ over 1 nights; forgetting", listed)
    assert "waiting" in requant("data", "status", project / "line.yaml")


def test_the_generation_at_which_a_score_turned_is_named(project: Path) -> None:
    config = project / "line.yaml"
    said = requant("blame", config, "heldout_perplexity")
    assert "mean of 32 documents, higher is better" in said
    assert re.search(r"original: -\d+\.\d+", said)
    assert re.search(r"turned at night [12]: |no clear change from the first to night 2: ", said)
    number = re.search(r"row (\d+)", requant("data", "show", config, "held_out"))
    assert number
    assert "requant_row, one document, higher" in requant("blame", config, number[1])
    assert "tasks: heldout_perplexity, " in requant("blame", config, "nonsense", fails=2)
    assert "numbered from 0" in requant("blame", config, "100000", fails=2)


def test_mlflow_and_the_page_of_nights_have_the_matrix(project: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project}/state/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "requant"]
    runs = client.search_runs([experiment.experiment_id])
    newest, oldest = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert "generations/backward_transfer" not in oldest.data.metrics
    assert {
        "generations/average",
        "generations/backward_transfer",
        "generations/backward_transfer_stderr",
        "generations/forgetting",
    } <= newest.data.metrics.keys()
    requant("report", project / "line.yaml", "--nights", 9)
    page = (project / "state/reports/micro.html").read_text()
    assert "What every generation kept of every night" in page
    assert re.search(r'background: rgba\(\d+, \d+, \d+, 0\.60\)">\d\.\d+<br>', page)


def test_rows_of_a_model_that_is_rolled_back_are_set_aside(project: Path) -> None:
    requant("rollback", project / "line.yaml")
    outcome = read_line(Store(project / "state"), "micro").nights[2]
    assert (outcome.verdict, outcome.reason) == ("refused", "rolled back")
    assert "set aside" in requant("data", "status", project / "line.yaml")
    assert "no row is discarded" in requant("data", "show", project / "line.yaml", "discarded")
    requant("promote", project / "line.yaml", "--version", 2, "--reason", "it was right")
    promoted = read_line(Store(project / "state"), "micro").nights[2]
    assert (promoted.verdict, promoted.reason) == ("accepted", "")
    assert "set aside" not in requant("data", "status", project / "line.yaml")
