"""Every command over a state folder in which everything was replaced, and that is open to others.

No code runs, none hangs, and the folder is closed.
"""

import json
import os
import pickle
import stat
from itertools import cycle
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from requant.cli import COMMANDS, app
from requant.store import Store
from tests.support.chain import MICRO
from tests.support.nights import make_night
from tests.support.pickles import Bomb, armed

NAMES = (
    "actions",
    "answers",
    "results",
    "pins",
    "ledgers",
    "lines",
    "deployments",
    "attempts",
    "locks",
    "services",
    "preflight",
)
"""Folders of small files that commands read."""
OFF = (
    "write_replay",
    "quantize_base",
    "train_adapter",
    "merge_fp16",
    "continue_train",
    "requantize_gptq",
    "train_on_grid",
    "evaluate",
    "promote",
)
"""Stages that `run` is spared: two are enough to read records and results."""


STATELESS = {"schema", "merge", "undo", "compare", "notify"}
"""Commands that open no state folder."""
CANARY = "canary"
"""A file beside the state folder, which links in it lead to."""


def pickled(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def naming_a_class(path: Path, canary: Path) -> None:
    bomb = pickle.dumps(Bomb(), protocol=0).decode()
    path.write_text(json.dumps({"serializer": {"type": "pickle"}, "result": bomb}))


def nested(path: Path, canary: Path) -> None:
    path.write_text("[" * 200_000)


def a_pipe(path: Path, canary: Path) -> None:
    os.mkfifo(path)


def a_link_out(path: Path, canary: Path) -> None:
    path.symlink_to(canary)


def no_text(path: Path, canary: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 99)


POISONS = (pickled, naming_a_class, nested, a_pipe, a_link_out, no_text)


def poison(state: Path, first: int) -> int:
    """Replace every small file of a state folder, and put a pickle beside the weights."""
    for name in NAMES:
        (state / name).mkdir(exist_ok=True)
        for letter in "abcdef":
            (state / name / f"{letter * 64}.json").touch()
    for name in ("prefect-server", "mlflow-server", "worker"):
        (state / "services" / name).touch()
    (state / "deployments" / "micro.json").touch()
    (state / "pins" / "night").touch()
    for letter in "abcdef":
        (state / "reports" / letter).mkdir(parents=True, exist_ok=True)
        (state / "reports" / letter / "summary.json").touch()
    kinds = cycle(POISONS[first:] + POISONS[:first])
    small = sorted(path for name in (*NAMES, "reports") for path in (state / name).rglob("*"))
    small = [path for path in small if not path.is_dir()]
    # Of every other artifact the list of its files too.
    small += sorted((state / "objects").glob("*/*/manifest.json"))[::2]
    canary = state.with_name(CANARY)
    for path, kind in zip(small, kinds, strict=False):
        # Or the link of an earlier poison would be written through.
        path.unlink()
        kind(path, canary)
    for folder in (state / "objects").glob("*/*"):
        pickled(folder / "pytorch_model.bin", canary)
        pickled(folder / "adapter_model.bin", canary)
    return len(small)


@pytest.mark.parametrize("first", range(2))
def test_no_command_runs_or_hangs_on_what_lies_in_the_state_folder(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = armed(tmp_path, monkeypatch)
    state = tmp_path / "state"
    (tmp_path / CANARY).write_text("untouched")
    records = make_night(Store(state))
    base, adapter = (records[name].digest for name in ("prepare_base", "train_adapter"))
    objects = {digest: str(Store(state).object_path(digest)) for digest in (base, adapter)}
    config = tmp_path / "micro.yaml"
    sections = yaml.safe_load(MICRO)
    for name in OFF:
        sections[name] = {**sections.get(name, {}), "enabled": False}
    config.write_text(yaml.safe_dump({**sections, "state": str(state)}))
    of_state = {
        "lineage": [base[:12]],
        "gate": [records["requantize_gptq"].digest[:12], base[:12]],
        "export": [base[:12], "--format", "gguf", "--out", "out"],
        "explain": ["merge_fp16"],
        "verify": ["--deep"],
        "gc": ["--keep", "1"],
        "down": [],
    }
    arguments: dict[str, list[str]] = {
        **{
            name: [str(config)]
            for name in ("status", "report", "nights", "promote", "rollback", "deploy", "init")
        },
        **{name: [*words, "--state", str(state)] for name, words in of_state.items()},
        "blame": [str(config), "old_perplexity"],
        "checkout": [str(config), "1", "--out", str(tmp_path / "out")],
        "anchor": [str(config), "--version", "1", "--reason", "x"],
        "schema": [],
        "merge": ["--base", objects[base], "--adapter", objects[adapter], "--out", "out"],
        "undo": [objects[base], "--delta", objects[adapter], "--out", "out"],
        "compare": [objects[base], objects[base]],
        "notify": ["slack-webhook/none"],
        "run": [str(config)],
    }
    monkeypatch.chdir(Path(__file__).parents[2])
    poisoned = poison(state, first)
    assert poisoned > 10
    # `up` and `setup` change the server that these tests share: they are started in tests/e2e.
    names = [command.__name__ for commands in COMMANDS.values() for command in commands]
    assert set(arguments) == set(names) - {"up", "setup"}
    for name, words in arguments.items():
        state.chmod(0o755)
        result = CliRunner().invoke(app, [name, *words])
        said = f"{name} {words}: {result.exception!r}\n{result.output[-3000:]}"
        assert result.exit_code in (0, 1, 2), said
        assert result.exception is None or isinstance(result.exception, SystemExit), said
        assert not mark.exists(), said
        assert (tmp_path / CANARY).read_text() == "untouched", said
        if name not in STATELESS:
            assert f"{state} was open to other users" in " ".join(result.output.split()), said
            assert stat.S_IMODE(state.stat().st_mode) == 0o700, said
        poison(state, first)
    assert result.exit_code == 0, said
