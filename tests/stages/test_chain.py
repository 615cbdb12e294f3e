"""The store's promises over the whole chain: run once, re-run what changed, survive any crash."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from requant.config import Config
from requant.store import Store, all_records, artifact_of, read_record, verify
from requant.store.answers import answer_notes, read_kept
from tests.support.chain import child_process, micro_config, run_chain
from tests.support.stages import stages_on


def killed_run(config: Config, kill_in: int) -> int:
    """Run the chain in a process that ends itself; return its exit code.

    The process sends itself SIGKILL when the stage after that many opens its second file for
    writing in the draft of its artifact: the first is there, the artifact is half written. Stages
    that are cached do not count.
    """
    return child_process(_run, config, kill_in)


def _run(config: Config, kill_in: int) -> None:
    _kill_while_writing(Store(config.state).tmp, kill_in)
    run_chain(config)


def _kill_while_writing(drafts: Path, position: int) -> None:
    opened: dict[str, set[Path]] = {}

    def watch(event: str, arguments: tuple) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(arguments[0]))
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        if drafts in path.parent.parents and (writes or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            draft = opened.setdefault(path.relative_to(drafts).parts[0], set())
            draft.add(path)
            if len(opened) > position and len(draft) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.fixture(scope="module")
def files(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary JSONL files, as a user would bring them."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("train", "heldout"):
        (folder / f"{name}.jsonl").write_bytes((tiny_data / f"{name}.jsonl").read_bytes())
    return folder


def config_of(state: Path, files: Path, **sections) -> Config:
    source = {
        "kind": "files",
        "train": [str(files / "train.jsonl")],
        "heldout": str(files / "heldout.jsonl"),
    }
    data = {"source": source, "max_evaluation_rows": 8}
    return micro_config(state, prepare_data=data, **sections)


@pytest.fixture(scope="module")
def night(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A state folder in which one night is done."""
    config = config_of(tmp_path_factory.mktemp("night") / "state", files)
    run_chain(config)
    return config


@pytest.fixture(scope="module")
def keys(night: Config) -> dict[str, str]:
    """Stage to key of the night's own records, before any test adds others."""
    return {record.stage: record.key for record in all_records(Store(night.state))}


def executed(config: Config, since: int) -> list[str]:
    return [record.stage for record in all_records(Store(config.state))][since:]


def starts(config: Config) -> dict[str, float]:
    return {record.key: record.started for record in all_records(Store(config.state))}


def test_every_stage_leaves_a_verified_artifact(night: Config, keys: dict[str, str]) -> None:
    store = Store(night.state)
    records = all_records(store)
    assert tuple(keys) == stages_on(night)
    for record in records:
        verify(store, artifact_of(store, record))
    assert list(store.tmp.iterdir()) == []
    assert list((store.root / "work").iterdir()) == []


def test_a_second_run_executes_nothing(night: Config) -> None:
    before = starts(night)
    run_chain(night)
    assert starts(night) == before


def test_moving_the_data_executes_nothing_and_one_byte_what_is_downstream(
    night: Config, files: Path, tmp_path: Path
) -> None:
    before = starts(night)
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    moved = config_of(night.state, tmp_path)
    run_chain(moved)
    assert starts(night) == before

    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    text = row["messages"][-1]["content"]
    content = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(content.replace(text[-1], "!", 1))
    run_chain(moved)
    assert executed(night, since=len(before)) == [
        "prepare_data",
        "train_adapter",
        "merge_fp16",
        "continue_train",
        "requantize_gptq",
        "evaluate",
    ]


@pytest.mark.parametrize("harm", ["delete", "flip"])
def test_a_harmed_artifact_is_made_again_and_what_is_downstream_stays(
    night: Config, keys: dict[str, str], harm: str
) -> None:
    store = Store(night.state)
    before = starts(night)
    record = read_record(store, keys["merge_fp16"])
    assert record is not None
    weights = store.object_path(record.digest) / "model.safetensors"
    if harm == "delete":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    run_chain(night)
    after = starts(night)
    assert [key for key in after if after[key] != before[key]] == [record.key]
    verify(store, artifact_of(store, record))


def test_forcing_a_stage_whose_bytes_come_out_equal_leaves_the_rest_cached(night: Config) -> None:
    before = starts(night)
    digests = {record.key: record.digest for record in all_records(Store(night.state))}
    run_chain(night, force=("train_adapter",))
    after = all_records(Store(night.state))
    assert {record.key: record.digest for record in after} == digests
    assert [item.stage for item in after if item.started != before[item.key]] == ["train_adapter"]


def test_stages_that_are_off_are_skipped_and_the_chain_stays_valid(
    night: Config, files: Path
) -> None:
    adapter = night.train_adapter.model_dump() | {"enabled": False}
    off = {
        "quantize_base": {"enabled": False},
        "train_adapter": adapter,
        "merge_fp16": {"enabled": False},
        "continue_train": night.continue_train.model_dump() | {"enabled": False},
    }
    before = len(starts(night))
    config = config_of(night.state, files, **off)
    run_chain(config)
    assert executed(night, since=before) == ["requantize_gptq", "evaluate"]
    scores = all_records(Store(night.state))[-1].metrics
    assert {name.partition("/")[0] for name in scores} == {"base", "requantized"}


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "p_tuning"])
def test_an_adapter_that_cannot_be_merged_is_evaluated_on_its_base(
    method: str, night: Config, files: Path
) -> None:
    off = {"enabled": False}
    before = len(starts(night))
    config = config_of(
        night.state,
        files,
        train_adapter=night.train_adapter.model_dump() | {"method": method},
        merge_fp16=off,
        continue_train=night.continue_train.model_dump() | off,
        requantize_gptq=off,
    )
    run_chain(config)
    assert executed(night, since=before) == ["train_adapter", "evaluate"]
    scores = all_records(Store(night.state))[-1].metrics
    assert {name.partition("/")[0] for name in scores} == {"base", "adapted"}
    name = "heldout_perplexity/byte_perplexity"
    assert scores[f"adapted/{name}"] != scores[f"base/{name}"]


def test_past_nights_adapters_are_merged_with_tonights(night: Config, files: Path) -> None:
    """Last night's adapter is the one there is; repeated, tonight takes the same ones."""
    store = Store(night.state)
    adapters = [record for record in all_records(store) if record.stage == "train_adapter"]
    last = max(
        (record for record in adapters if "lora" in str(record.key_fields["config"]["method"])),
        key=lambda record: record.started,
    )
    off = {"enabled": False}
    config = config_of(
        night.state,
        files,
        train_adapter=night.train_adapter.model_dump() | {"alpha": 5.0},
        merge_fp16=night.merge_fp16.model_dump() | {"past_nights": 1, "weights": (1.0, 0.5)},
        continue_train=night.continue_train.model_dump() | off,
        requantize_gptq=off,
        evaluate=off,
    )
    before = len(starts(night))
    run_chain(config)
    assert executed(night, since=before) == ["train_adapter", "merge_fp16"]
    merge = all_records(store)[-1]
    assert merge.key_fields["inputs"]["past_1"] == last.digest
    run_chain(config)
    assert all_records(store)[-1] == merge


def test_sigkill_in_the_middle_of_any_stage_leaves_no_half_and_the_next_run_finishes(
    files: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "state", files)
    store, stages = Store(config.state), list(stages_on(config))
    for position, stage in enumerate(stages):
        # What was killed the last time is made first.
        assert killed_run(config, kill_in=min(position, 1)) == -signal.SIGKILL, stage
        records = all_records(store)
        assert [record.stage for record in records] == stages[:position]
        answers = {read_kept(store, path).digest for path in answer_notes(store)}
        made = {record.digest for record in records}
        assert {path.name for path in store.objects.glob("*/*")} == made | answers
    run_chain(config)
    assert [record.stage for record in all_records(store)] == stages
