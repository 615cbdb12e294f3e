"""The look before the night lists everything at once, and a check that fails hides nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from requant.errors import ConfigError, TransientError
from requant.preflight import Problem, find_problems, refuse
from requant.preflight.known_looks import unless_known
from requant.store import Store, write_record
from tests.support.chain import LENIENT_GATE, MICRO, micro_config
from tests.support.nights import make_night

ONE_TEST = {**LENIENT_GATE, "harm_a_year": 0.9, "tests_a_year": 1, "broken_share": 0.5}


def lines(state: Path, **sections: Any) -> list[str]:
    return [str(problem) for problem in find_problems(micro_config(state, **sections))]


def test_a_night_that_can_end_well_has_no_problem(tmp_path: Path) -> None:
    assert lines(tmp_path) == []


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"question": "x"}) + "\n")
    optimisation = {"max_steps": 4, "batch_size": 4, "max_length": 4096}
    found = lines(
        tmp_path,
        prepare_data={"source": {"kind": "files", "train": [str(bad)]}},
        train_adapter={"target_modules": ["c_attn"], "optimisation": optimisation},
        continue_train={"scope": "top_layers", "layers": 9, "optimisation": optimisation},
        requantize_gptq={"group_size": 128, "overrides": [{"modules": ["fc1"], "mse": 0.0}]},
        deploy={"action": {"kind": "command", "argv": ["./no-such-program"]}},
    )
    expected = [
        "deploy.action.argv: its first item (17 characters) is no program here (it is not sho",
        "requantize_gptq.overrides.0.modules: fc1 not in this model; its layers are: down_proj, ",
        "requantize_gptq.group_size: 128 does not divide in_features=64 of model.layers.*.gate_",
        "train_adapter.target_modules: c_attn not in this model; its layers are: down_proj, ",
        "continue_train.layers: got 9, the model has 2 blocks; give 1 to 2",
        f"prepare_data.source: {bad}, line 1: has no column 'messages'",
    ]
    assert len(found) == len(expected), found
    for line, text in zip(found, expected, strict=True):
        assert line.startswith(text)


def test_what_is_missing_is_named_beside_the_rest(tmp_path: Path) -> None:
    found = lines(
        tmp_path,
        prepare_base={"source": {"kind": "folder", "path": str(tmp_path / "none")}},
        prepare_data={"source": {"kind": "files", "train": [str(tmp_path / "night.jsonl")]}},
    )
    assert any("none is not a folder; give one with config.json" in line for line in found)
    assert any("night.jsonl is not a file; give an existing one" in line for line in found)


def test_a_pin_that_cannot_be_believed_is_known_before_the_night(tmp_path: Path) -> None:
    path = Store(tmp_path).pin_path("micro-anchor")
    path.parent.mkdir()
    path.write_text("garbage")
    (found,) = lines(tmp_path)
    assert found.startswith(f"state: {path}: is not JSON")
    assert "; put it back from a copy, or remove the file" in found
    assert lines(tmp_path, evaluate={"enabled": False}, promote={"enabled": False}) == []


def test_a_check_that_fails_names_itself_and_hides_none(tmp_path: Path) -> None:
    def broken(config: Any) -> Any:
        yield Problem("a", "first")
        raise ZeroDivisionError("by zero")

    found = find_problems(micro_config(tmp_path), more=(broken, lambda config: [Problem("b", "c")]))
    assert [str(problem) for problem in found] == [
        "a: first",
        "preflight.broken: the check itself failed (ZeroDivisionError: by zero); report this",
        "b: c",
    ]


def test_only_what_may_pass_is_worth_a_retry() -> None:
    away = Problem("tracking.uri", "is away", may_pass=True)
    with pytest.raises(TransientError, match=r"\(1 found\):\n  tracking.uri: is away"):
        refuse([away])
    with pytest.raises(ConfigError, match=r"\(2 found\)"):
        refuse([away, Problem("state", "is full")])
    refuse([])


def test_a_deployment_is_made_with_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.steps import read_config

    path = tmp_path / "micro.yaml"
    path.write_text(MICRO)
    made = read_config(str(path), ["requantize_gptq.group_size=128", f"state={tmp_path}"])
    assert made["config"]["requantize_gptq"]["group_size"] == 128
    said = capsys.readouterr().err
    assert "warning: a night started now would be refused: requantize_gptq.group_size: 128" in said


def test_what_was_found_right_is_not_looked_at_again_and_what_was_wrong_is(tmp_path: Path) -> None:
    looks: list[int] = []

    def look(*problems: Problem) -> list[Problem]:
        looks.append(1)
        return list(problems)

    wrong = Problem("a", "wrong")
    assert unless_known(tmp_path, {"data": "1"}, lambda: look(wrong)) == [wrong]
    assert unless_known(tmp_path, {"data": "1"}, look) == []
    assert unless_known(tmp_path, {"data": "1"}, look) == []
    assert unless_known(tmp_path, {"data": "2"}, look) == []
    assert len(looks) == 3


def jsonl(path: Path, answers: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": "q", "response": a}) + "\n" for a in answers))
    return str(path)


def test_parts_and_guards_are_looked_at_before_the_night(tmp_path: Path) -> None:
    same = jsonl(tmp_path / "same.jsonl", ["a"] * 9)
    many = jsonl(tmp_path / "many.jsonl", [f"answer {number}" for number in range(60)])
    none = tmp_path / "none.txt"
    none.write_text(" \n")
    short = tmp_path / "short.txt"
    short.write_text("Only one paragraph.")

    def found(auto: bool = False, gate: Any = None, **source: Any) -> list[str]:
        data = {"source": {"kind": "files", **source}}
        evaluate = {"gate": gate or {}}
        sections: Any = {"prepare_data": data, "evaluate": evaluate, "promote": {"auto": auto}}
        return lines(tmp_path / "state", **sections)

    assert found(train=[many], auto=True, gate=ONE_TEST) == []
    assert found(train=[many]) == []
    (scarce,) = found(train=[many], auto=True)
    assert re.match(
        r"promote.auto: true, and these tasks will have too few documents: heldout_perplexity "
        r"\(\d\), response_choice \(\d\)\. With fewer than 218 nothing can be shown at an error of",
        scarce,
    )
    (empty,) = found(train=[same])
    assert empty.startswith(
        "prepare_data: the training part is empty (training 0, held-out 9 rows)"
    )
    assert empty.endswith(f"; read: {same}: 9 rows, prompt and response")
    (overlap,) = found(train=[many], heldout=many)
    assert overlap.startswith(
        "prepare_data.source: 60 of 60 training rows are held-out rows too; the first: "
        f"{many}, line 1 is {many}, line 1: "
    )
    assert found(train=[f"{many}.jsonl", f"{none}.jsonl"], heldout=many) == [
        f"prepare_data.source.train.{number}: {path}.jsonl is not a file; give an existing one"
        for number, path in enumerate((many, none))
    ]
    (blank,) = found(train=[many], old_text=str(none))
    assert blank.endswith("none.txt is empty; give text, or null")
    asked = {**ONE_TEST, "guard": ["old_perplexity", "response_choice"]}
    (few,) = found(train=[many], heldout=same, old_text=str(short), auto=True, gate=asked)
    assert "too few documents: old_perplexity (1), response_choice (0). With fewer than 3 " in few


def test_a_gate_that_could_never_decide_is_found_before_the_first_night(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    jsonl(rows / "many.jsonl", [f"answer {number}" for number in range(60)])
    collected: Any = {
        "collect_rows": {
            "enabled": True,
            "sources": [{"kind": "files", "name": "rows", "paths": [str(rows)]}],
        },
        "prepare_data": {"source": {"kind": "collected"}, "max_evaluation_rows": 64},
    }
    assert lines(tmp_path / "state", **collected) == []
    (scarce,) = lines(
        tmp_path / "state", **collected, promote={"auto": True}, evaluate={"gate": {}}
    )
    assert "heldout_perplexity (64), response_choice (64), old_perplexity (64). With" in scarce
    (shared,) = lines(tmp_path / "state", requantize_gptq={"group_size": 64, "tensor_parallel": 3})
    assert shared.startswith("requantize_gptq.tensor_parallel: 3 GPUs cannot share the groups of")
    for field in ("guard", "target"):
        gate = {field: ["past_heldout_perplexity"]}
        (alone,) = lines(tmp_path / "state", evaluate={"gate": gate})
        assert alone.startswith(f"evaluate.gate.{field}: [past_heldout_perplexity] alone, and no n")
        store = Store(tmp_path / field)
        data = make_night(store)["prepare_data"]
        write_record(store, data.model_copy(update={"labels": {"pipeline": "micro"}}))
        assert lines(tmp_path / field, evaluate={"gate": gate}) == []


def test_a_year_that_cannot_be_believed_is_found_before_the_night(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [f"answer {number}" for number in range(60)])
    night: Any = {
        "prepare_data": {"source": {"kind": "files", "train": [rows]}},
        "evaluate": {"gate": ONE_TEST},
    }
    ledger = Store(tmp_path / "state").ledger_path("micro")
    ledger.parent.mkdir(parents=True)
    ledger.write_text("[{}]")
    assert lines(tmp_path / "state", **night) == []
    (problem,) = lines(tmp_path / "state", **night, promote={"auto": True})
    assert problem.startswith(f"promote.auto: {ledger}: is not as it was written (")


def test_every_unreadable_row_of_every_file_is_listed(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q", "response": "a"})
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    odd = json.dumps({"prompt": "q", "response": "a", "id": 1})
    first.write_text("\n".join([odd, "{not json", good, "[1]", good, '{"foo": 1}']))
    second.write_text("\n".join(["{"] * 13))
    source = {"kind": "files", "train": [str(first), str(second)]}
    data = {"source": source, "unknown_fields": "refuse"}
    found = lines(tmp_path / "state", prepare_data=data)
    field = "prepare_data.source: "
    assert f"{first}, line 1: id: nothing reads this" in found.pop(3)
    assert [line.partition(": ")[2].partition(": ")[0] for line in found[:-1]] == [
        *(f"{first}, line {number}" for number in (2, 4, 6)),
        *(f"{second}, line {number}" for number in range(1, 11)),
    ]
    assert found[-1] == f"{field}... and 3 more rows"


def test_a_misspelt_guard_is_found_before_it_is_to_guard(tmp_path: Path) -> None:
    gate = {**ONE_TEST, "guard": ["old_perplexity", "helaswag"]}
    evaluate = {"tasks": ["hellaswag"], "batch_size": 8, "gate": gate}

    for auto in (False, True):
        (text,) = lines(tmp_path, evaluate=evaluate, promote={"auto": auto})
        assert text.startswith("evaluate.gate: 'helaswag' is not evaluated")
