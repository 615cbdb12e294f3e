"""What never ends or swells is stopped before the night, and named; nothing else is lost by it."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from requant.config import Config
from requant.config.data import Columns
from requant.data.files import read_row_file
from requant.errors import ConfigError, ContractError
from requant.machine.looking import Look, Watch, look
from requant.preflight import find_problems
from tests.support.chain import micro_config
from tests.support.looked import looked_here
from tests.support.row_files import rows, write

ENDLESS = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}"
)
ENDLESS += "{% endfor %}{% endfor %}"


def night(base: Path, train: Path, state: Path, **sections: Any) -> Config:
    return micro_config(
        state,
        prepare_base={"source": {"kind": "folder", "path": str(base)}},
        prepare_data={"source": {"kind": "files", "train": [str(train)]}},
        **sections,
    )


def found(base: Path, train: Path, state: Path, **sections: Any) -> list[str]:
    return [str(problem) for problem in find_problems(night(base, train, state, **sections))]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (ENDLESS, "takes longer than 2 s; something in it repeats without end"),
        ("{{ 'x' * 9999999999 }}", "needs more memory than 1"),
        (
            "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}"
            "{% endfor %}{{ ns.t }}",
            "needs more memory than 1",
        ),
    ],
)
def test_a_template_without_end_is_stopped_and_named_with_its_row(
    template: str, why: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").write_text(template)
    train = write(tmp_path / "night.jsonl", rows(0, 9))
    (line,) = found(base, train, tmp_path / "state")
    assert f"night.jsonl, line 1, through chat template and tokenizer of {base}: {why}" in line
    assert len(line) < 600


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "deep", json.loads("[" * 500 + "]" * 500)),
        ("config.json", "num_hidden_layers", 10**7),
        ("config.json", "layer_types", ["no such layer"] * 2),
        ("tokenizer_config.json", "deep", json.loads("[" * 500 + "]" * 500)),
    ],
)
def test_a_base_that_the_door_refused_is_read_by_nobody_else(
    file: str, field: str, value: Any, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    content = json.loads((base / file).read_text()) | {field: value}
    (base / file).write_text(json.dumps(content))
    train = write(tmp_path / "night.jsonl", [*rows(0, 9), {"messages": "none"}])
    lines = found(base, train, tmp_path / "state")
    assert not [line for line in lines if "report this" in line]
    assert [line for line in lines if line.startswith(f"prepare_base.source.path: {base}: ")]
    # The rows are read all the same.
    assert [line for line in lines if "night.jsonl, line 10" in line]


def test_a_pattern_that_is_none_is_named_by_its_field(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    content = json.loads((base / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(\x1b"}, "content": ""}
    (base / "tokenizer.json").write_text(json.dumps(content))
    train = write(tmp_path / "night.jsonl", rows(0, 9))
    (line,) = looked_here(night(base, train, tmp_path / "state"))
    assert f"{base}/tokenizer.json: normalizer.pattern.Regex='(\\x1b': is no pattern (" in line
    assert line.endswith("correct it, or copy the file anew")


def test_the_prompt_of_the_deployment_goes_through_the_tokenizer(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    content = json.loads((base / "tokenizer.json").read_text())
    pattern = {"Regex": r"(\w+\s?)*$9"}
    content["normalizer"] = {"type": "Replace", "pattern": pattern, "content": ""}
    (base / "tokenizer.json").write_text(json.dumps(content))
    train = write(tmp_path / "night.jsonl", rows(0, 9))
    prompt = {"smoke_prompt": "hello world " * 200 + "9 x"}
    lines = found(base, train, tmp_path / "state", deploy=prompt)
    assert [line for line in lines if "deploy.smoke_prompt" in line]


def test_a_pattern_of_the_tokenizer_without_end_is_stopped(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {
        "type": "Replace",
        "pattern": {"Regex": "(x+x+)+y"},
        "content": "z",
    }
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = rows(0, 9)
    said[3]["messages"][0]["content"] = "x" * 5000
    train = write(tmp_path / "night.jsonl", said)
    (line,) = looked_here(night(base, train, tmp_path / "state"))
    file = re.escape(str(base / "tokenizer.json"))
    assert re.search(
        rf"night.jsonl, line 4: {file}: normalizer.pattern.Regex='\(x\+x\+\)\+y': the tokenizer "
        r"gives up on this text \(Onig: Regex search error: retry-limit.*\); expected a pattern "
        "without repeats inside of repeats, .*: correct it, or take another base",
        line,
    )
    assert "report this" not in line


def test_a_parquet_that_unpacks_to_a_thousand_times_its_size_is_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    path = tmp_path / "night.parquet"
    texts = [f"{number:04}" + "x" * 1_000_000 for number in range(600)]
    write_table(Table.from_pydict({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < 2 << 20
    (line,) = found(tiny_base, path, tmp_path / "state")
    assert "MiB and unpacks to 572 MiB, at most 256 MiB are read of a file of its size" in line
    assert line.endswith("write the rows as .jsonl")


def test_a_text_that_a_dictionary_of_parquet_holds_once_counts_for_each_row(tmp_path: Path) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    path = tmp_path / "night.parquet"
    write_table(Table.from_pydict({"text": ["x" * 1_000_000] * 700}), path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ContractError, match=r"and unpacks to \d+ MiB, at most 256 MiB are read"):
        read_row_file(path, Columns(), "list")


def swelling(argument: Any, watch: Any) -> int:
    watch("a field: a value", 5)
    return len(bytearray(4 << 30))


def crashing(argument: Any, watch: Any) -> None:
    import ctypes

    watch("a field: a value", 5)
    ctypes.string_at(0)


def refusing(argument: Any, watch: Any) -> None:
    raise ContractError(f"{argument}: is wrong")


def test_what_ends_a_look_is_told_by_the_piece_it_was_at() -> None:
    with pytest.raises(ConfigError, match=r"^a field: a value: needs more memory than 1024 MiB"):
        look(Look(f"{__name__}:swelling", None))
    with pytest.raises(
        ConfigError, match=r"^a field: a value: ended the process that read it .SIGSEGV"
    ):
        look(Look(f"{__name__}:crashing", None))
    with pytest.raises(ContractError, match=r"^x: is wrong$"):
        look(Look(f"{__name__}:refusing", "x"))


def test_what_was_found_right_is_not_looked_at_again(tiny_base: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    train = write(tmp_path / "night.jsonl", rows(0, 9))
    assert found(tiny_base, train, state) == []
    (mark,) = (state / "preflight").iterdir()
    assert found(tiny_base, train, state) == []
    write(train, rows(0, 8))
    assert found(tiny_base, train, state) == []
    assert len(list((state / "preflight").iterdir())) == 2
    assert mark.exists()


def variables(argument: list[str], watch: Watch) -> list[str]:
    return sorted({*argument} & {*os.environ})


def test_what_looks_at_files_of_others_has_no_password_of_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"]
    for name in names:
        monkeypatch.setenv(name, "a-long-secret")
    assert look(Look(f"{__name__}:{variables.__name__}", names)) == ["HF_TOKEN"]
