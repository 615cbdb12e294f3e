"""Nights that learn what is new, through the command line: taken, nothing to do, shown, decided."""

import re
from pathlib import Path

import pytest
import yaml

from requant.config.loading import load_config
from requant.store import Store
from requant.store.lines import read_line
from tests.support.chain import MICRO
from tests.support.commands import requant, states
from tests.support.ledger_nights import chat, write_chats

OFF = ("quantize_base", "train_adapter", "merge_fp16", "continue_train", "requantize_gptq")
"""Stages a night of the ledger is spared here."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a line that reads the rows in `chats`."""
    folder = tmp_path_factory.mktemp("nightly")
    document = yaml.safe_load(MICRO)
    document |= {name: {**document.get(name, {}), "enabled": False} for name in OFF}
    document |= {
        "state": str(folder / "state"),
        "collect_rows": {
            "enabled": True,
            "sources": [{"kind": "files", "name": "chats", "paths": [str(folder / "chats")]}],
        },
        "extend_ledger": {"min_new_rows": 16},
        "prepare_data": {"source": {"kind": "collected"}, "max_evaluation_rows": 8},
        "evaluate": {"enabled": False},
        "promote": {"enabled": False},
    }
    (folder / "line.yaml").write_text(yaml.safe_dump(document))
    return folder


def test_nights_take_what_is_new_and_say_when_there_is_nothing(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = project / "line.yaml"
    assert "no night has read a row yet" in requant("data", "status", config)
    write_chats(project / "chats/monday.jsonl", [*map(chat, range(40)), "broken"])
    first = requant("run", config)
    assert states(first)["prepare_data"] == "done"
    assert "quarantined: chats: monday.jsonl, line 41: is not JSON" in caplog.text
    line = read_line(Store(project / "state"), load_config(config).name)
    assert line.nights[1].verdict == "accepted"
    idle = requant("run", config)
    assert "nothing to do: 0 rows that no night has read, 0 wait for more: a night needs 16" in idle
    write_chats(project / "chats/tuesday.jsonl", map(chat, range(30, 45)))
    idle = requant("run", config)
    assert re.search(r"nothing to do: 15 rows .* \(10 exact duplicate\), 5 wait for more", idle)
    write_chats(project / "chats/wednesday.jsonl", map(chat, range(45, 60)))
    assert states(requant("run", config))["prepare_data"] == "done"


def test_what_too_little_text_would_calibrate_ends_before_it_is_trained(
    project: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load((project / "line.yaml").read_text()) | {"state": str(tmp_path / "s")}
    document |= {name: {**document[name], "enabled": True} for name in OFF}
    document["continue_train"]["enabled"] = False
    document["requantize_gptq"]["calibration_min_tokens"] = 10**6
    document["collect_rows"]["sources"][0]["paths"] = [str(tmp_path / "chats")]
    config = tmp_path / "line.yaml"
    config.write_text(yaml.safe_dump(document))
    write_chats(tmp_path / "chats/monday.jsonl", map(chat, range(40)))
    for _ in range(2):
        failed = requant("run", config, fails=1)
        assert re.search(r"requantize_gptq: \d+ texts of calibration have \d+ tokens", failed)
        assert "expected at least 1000000 (requantize_gptq.calibration_min_tokens)" in failed
        assert states(failed)["train_adapter"] == "not reached"
    lowered = ("--set", "requantize_gptq.calibration_min_tokens=1")
    assert states(requant("status", config, *lowered))["prepare_data"] == "cached"


def test_a_person_sees_what_became_of_every_row(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    config = project / "line.yaml"
    table = requant("data", "status", config)
    (total,) = (row for row in table.splitlines() if re.match(r".\s*all\b", row))
    rows, *fates = map(int, re.findall(r"\d+", total))
    assert sum(fates) == rows == 71
    assert re.search(r"trained, \d+ held out, 10 exact duplicate, 1 quarantined", total)
    shown = requant("data", "show", config, "exact_duplicate", "--limit", 1)
    assert "chats, tuesday.jsonl, line 1 (night 2)" in shown
    assert "says the same as: chats, monday.jsonl, line 31" in shown
    assert "no row is set_aside" in requant("data", "show", config, "set_aside")
    wrong = requant("data", "show", config, "lost", fails=2)
    assert "FATE 'lost': unknown; valid: training, trained, held_out" in wrong
    wrong = requant("data", "release", config, 1, fails=2)
    assert "night 1: is accepted; rows are set aside of nights: none" in wrong


def test_a_line_without_a_ledger_says_so(tmp_path: Path) -> None:
    document = yaml.safe_load(MICRO) | {"state": str(tmp_path / "state")}
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(document))
    wrong = requant("data", "status", tmp_path / "micro.yaml", fails=2)
    assert "collect_rows.enabled=false: its nights keep no ledger of rows" in wrong
