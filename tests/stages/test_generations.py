"""Generations: what a night starts from, by policy, and that a refused night has no children."""

import shutil
from pathlib import Path

import pytest

from requant.checkout import check_out
from requant.config import Config
from requant.config.fit import check_stages_fit
from requant.corpus import docstrings, instruction
from requant.data.rows import conversation
from requant.errors import ConfigError
from requant.ledger.nights import end
from requant.report.generations import generations, generations_table
from requant.store import StageRecord, Store, describe
from requant.store.lines import Outcome, Verdict
from requant.store.pins import pin
from tests.support.chain import Silent, micro_config, run_chain
from tests.support.commands import requant
from tests.support.ledger_nights import write_chats

ROWS = [conversation(instruction(item), item.summary) for item in docstrings()]
A_NIGHT = 60


def line(state: Path, base: Path, rows: Path, policy: str, **extend: int) -> Config:
    off = {"enabled": False, "optimisation": {"max_steps": 2}}
    source = {"kind": "files", "name": "docs", "paths": [str(rows)]}
    return micro_config(
        state,
        prepare_base={"source": {"kind": "folder", "path": str(base)}},
        collect_rows={"enabled": True, "sources": [source]},
        extend_ledger={"min_new_rows": 16, **extend},
        prepare_data={"source": {"kind": "collected"}, "max_evaluation_rows": 8},
        generations={"policy": policy},
        continue_train=off,
        evaluate={"enabled": False},
        promote={"enabled": False},
    )


def night(config: Config, rows: Path, number: int, verdict: Verdict) -> dict[str, StageRecord]:
    """Run a night on other rows; where it is accepted its model serves."""
    write_chats(rows / f"{number}.jsonl", ROWS[number * A_NIGHT : (number + 1) * A_NIGHT])
    records = run_chain(config)
    store, model = Store(config.state), records["requantize_gptq"].digest
    if verdict == "accepted":
        pin(store, config.name, "champion", model)
    end(store, config.name, Outcome(verdict=verdict, model=model))
    return records


def inputs(record: StageRecord) -> dict[str, str]:
    return dict(record.key_fields["inputs"])


def test_the_adapter_of_the_generation_that_serves_is_trained_on(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    config = line(tmp_path / "state", tiny_base, rows, "continue", consolidate_every=3)
    first = night(config, rows, 0, "accepted")
    assert "start" not in inputs(first["train_adapter"])
    second = night(config, rows, 1, "refused")
    third = night(config, rows, 2, "accepted")
    # The refused night has no children.
    for later in (second, third):
        assert inputs(later["train_adapter"])["start"] == first["train_adapter"].digest
        # Nothing rounds twice: merged from the original, and the quantized base stays cached.
        assert inputs(later["merge_fp16"])["original"] == first["prepare_base"].digest
        assert later["quantize_base"].started == first["quantize_base"].started
    found = generations(Store(config.state), config.name)
    assert [(each.night, each.parent, each.verdict, each.serves) for each in found] == [
        (1, None, "accepted", False),
        (2, 1, "refused", False),
        (3, 1, "accepted", True),
    ]
    assert all(each.began and each.rows > 20 for each in found)
    assert generations_table(found).row_count == 3
    drawn = requant("lineage", "micro", "--state", config.state)
    lines = [line for line in drawn.splitlines() if "night" in line]
    assert lines[1].index("night 2") == lines[2].index("night 3") > lines[0].index("night 1")
    assert "serves" in lines[2]
    # Every third generation trains the original anew.
    last = night(config, rows, 3, "accepted")
    assert "start" not in inputs(last["train_adapter"])


def test_adapters_are_stacked_or_the_16_bit_result_is_built_on(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    stack = line(tmp_path / "state", tiny_base, rows, "stack")
    nights = [night(stack, rows, number, "accepted") for number in range(3)]
    adapters = [records["train_adapter"].digest for records in nights]
    for stage in ("train_adapter", "merge_fp16"):
        found = inputs(nights[2][stage])
        assert (found["stacked_1"], found["stacked_2"]) == (adapters[1], adapters[0])
    # From here on another policy takes the same line further.
    chain = line(tmp_path / "state", tiny_base, rows, "chain")
    records = night(chain, rows, 3, "accepted")
    merged = nights[2]["merge_fp16"].digest
    assert inputs(records["quantize_base"])["base"] == merged
    assert inputs(records["merge_fp16"])["original"] == merged
    assert "stacked_1" not in inputs(records["merge_fp16"])


def test_a_night_that_goes_on_after_its_model_was_promoted_builds_on_the_same(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    config = line(tmp_path / "state", tiny_base, rows, "continue")
    night(config, rows, 0, "accepted")
    write_chats(rows / "1.jsonl", ROWS[A_NIGHT : 2 * A_NIGHT])
    killed = run_chain(config)
    pin(Store(config.state), config.name, "champion", killed["requantize_gptq"].digest)
    again = run_chain(config)
    assert {stage: each.started for stage, each in again.items()} == {
        stage: each.started for stage, each in killed.items()
    }


def test_an_adapter_of_a_refused_night_is_not_merged_into_a_later_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    config = line(tmp_path / "state", tiny_base, rows, "fresh")
    merge = config.merge_fp16.model_copy(update={"past_nights": 2})
    config = config.model_copy(update={"merge_fp16": merge})
    first = night(config, rows, 0, "accepted")
    night(config, rows, 1, "refused")
    third = night(config, rows, 2, "accepted")
    past = {role: it for role, it in inputs(third["merge_fp16"]).items() if "past" in role}
    assert past == {"past_1": first["train_adapter"].digest}


@pytest.mark.parametrize(
    ("policy", "changes", "says"),
    [
        ("stack", {"train_adapter": {"method": "dora"}}, "method='dora': only updates of LoRA add"),
        ("continue", {"continue_train": {"enabled": True}}, "what it learns is in no adapter, so"),
        ("chain", {"merge_fp16": {"past_nights": 1}}, "past_nights=1: tonight's model holds the n"),
        (
            "stack",
            {"quantize_base": {"method": "gptq"}},
            "every night would have another base, and",
        ),
        ("chain", {"merge_fp16": {"enabled": False}}, "train_adapter or merge_fp16 switched off"),
    ],
)
def test_policies_that_would_lose_something_are_refused(
    policy: str, changes: dict[str, dict[str, object]], says: str, tmp_path: Path
) -> None:
    config = line(tmp_path, tmp_path, tmp_path, policy)
    for section, fields in changes.items():
        changed = getattr(config, section).model_copy(update=fields)
        config = config.model_copy(update={section: changed})
    with pytest.raises(ValueError, match=says):
        check_stages_fit(config)


def test_the_models_of_a_night_come_back_byte_for_byte(tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    config = line(tmp_path / "state", tiny_base, rows, "continue")
    records = night(config, rows, 0, "accepted")
    store = Store(config.state)
    merged, shipped = (records[name].digest for name in ("merge_fp16", "requantize_gptq"))
    for digest in (merged, records["quantize_base"].digest):
        shutil.rmtree(store.object_path(digest))
    before = describe(store.root / "objects").digest
    found = check_out(config, 1, tmp_path / "out", Silent())
    assert found == {"4bit": shipped, "16bit": merged}
    for name, digest in found.items():
        assert describe(tmp_path / "out" / name).digest == digest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"4bit", "16bit"}
    assert describe(store.root / "objects").digest == before
    with pytest.raises(ConfigError, match=r"night 2: micro has no such night .* those that did: 1"):
        check_out(config, 2, tmp_path / "other", Silent())
    # What was made of other bytes does not come out equal.
    adapter = store.object_path(records["train_adapter"].digest)
    shutil.rmtree(adapter)
    with pytest.raises(ConfigError, match="holds something already"):
        check_out(config, 1, tmp_path / "out", Silent())
