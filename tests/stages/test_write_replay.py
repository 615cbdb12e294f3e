"""write_replay: rows that the base writes itself are ordinary ones, and nights replay them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.incremental_training import chain
from requant.config.data import Columns, PrepareData, WriteReplay
from requant.data.chat_template import Rules
from requant.data.formats import Row, parse_row
from requant.data.overlap import normalised
from requant.data.rows import conversation, write_jsonl
from requant.data.samples import check_rows, placed, read_rows
from requant.errors import ContractError
from requant.execution.stage import StageContext
from requant.execution.walk import walk
from requant.models.load import load_model
from requant.models.sampling import Sampling, continued
from requant.models.tokenizer import load_tokenizer
from requant.preflight.written import written_problems
from requant.stages import prepare_data, write_replay
from requant.store import Store, materialise
from tests.stages.conftest import MICRO_DATA, SilentReporter, make_context
from tests.support.chain import Performed, micro_config
from tests.support.ledger_nights import chat, ledger_config, ledger_night, write_chats
from tests.support.shared import Shared

SECTION = WriteReplay(enabled=True, rows=6, max_tokens=56, temperature=0.8, batch_size=8)
OFF = ("quantize_base", "train_adapter", "merge_fp16", "continue_train", "requantize_gptq")


def heard(context: StageContext) -> SilentReporter:
    assert isinstance(context.reporter, SilentReporter)
    return context.reporter


@pytest.fixture(scope="session")
def base(tiny_base: Path, shared: Shared) -> Path:
    """Folder of `tiny_base`, which forty steps have not taught to end a turn: a full stop does."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_base, folder)
        path, tokenizer = folder / "generation_config.json", load_tokenizer(folder)
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))

    return shared("base_that_ends", make)


@pytest.fixture(scope="session")
def written(base: Path, shared: Shared) -> Path:
    """Folder of six conversations that `base` wrote."""

    def make(folder: Path) -> None:
        write_replay.execute(SECTION, make_context(folder), base=base)

    return shared("written", make) / "out"


def test_rows_are_ordinary_ones_that_can_be_trained_on(written: Path, base: Path) -> None:
    rows = read_rows(written / "written.jsonl")
    assert len(rows) == SECTION.rows
    assert len(set(map(normalised, rows))) == len(rows)
    for row in rows:
        assert parse_row(row, Columns(), "x").row == row
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    tokenizer = load_tokenizer(base)
    report = check_rows(tokenizer, placed(written / "written.jsonl"), Rules())
    assert report.problems == []
    assert report.counts["samples"] == len(rows)
    # No turn is cut: each was said to its end within max_tokens, and learns to end.
    text = (written / "written.jsonl").read_text()
    assert not any(token in text for token in tokenizer.all_special_tokens)


def test_what_was_left_out_is_counted_and_said(base: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    metrics = write_replay.execute(SECTION, context, base=base)
    card = json.loads((context.out / "data_card.json").read_text())
    assert card["tried"] == metrics["tried_rows"] == card["rows"] + sum(card["left_out"].values())
    assert metrics["left_out_rows"] == sum(card["left_out"].values()) > 0
    assert metrics["written_rows"] == card["rows"] == SECTION.rows - metrics["missing_rows"]
    (said,) = heard(context).messages
    assert said.startswith(f"{card['rows']} of {card['tried']} rows that the base wrote are kept; ")
    assert all(f"{count} {reason}" in said for reason, count in card["left_out"].items())
    assert heard(context).steps[-1] == (6, 6, "rows written")


def test_a_seed_gives_the_same_bytes_and_another_one_others(
    written: Path, base: Path, tmp_path: Path
) -> None:
    # What the process has drawn before decides nothing.
    torch.manual_seed(3)
    bytes_of = {}
    for seed in (0, 1):
        context = make_context(tmp_path / str(seed), seed=seed)
        write_replay.execute(SECTION, context, base=base)
        bytes_of[seed] = {path.name: path.read_bytes() for path in context.out.iterdir()}
    assert bytes_of[0] == {path.name: path.read_bytes() for path in written.iterdir()}
    assert bytes_of[0]["written.jsonl"] != bytes_of[1]["written.jsonl"]


def test_a_killed_attempt_leaves_nothing_that_the_next_one_reads(
    written: Path, base: Path, tmp_path: Path
) -> None:
    class Killed(SilentReporter):
        def progress(self, done: int, total: int, unit: str) -> None:
            if done:
                raise KeyboardInterrupt

    context = make_context(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_replay.execute(SECTION, replace(context, reporter=Killed()), base=base)
    assert list(context.out.iterdir()) == []
    write_replay.execute(SECTION, context, base=base)
    assert (context.out / "written.jsonl").read_bytes() == (written / "written.jsonl").read_bytes()


def test_a_base_without_a_chat_template_writes_texts(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "base"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    context = make_context(tmp_path / "stage")
    write_replay.execute(SECTION, context, base=bare)
    rows = read_rows(context.out / "written.jsonl")
    assert len(rows) == SECTION.rows
    assert all(set(row) == {"text"} and row["text"].strip() for row in rows)


def test_what_cannot_be_written_is_refused_with_the_way_out(
    tiny_base: Path, tmp_path: Path
) -> None:
    # The likeliest word of a model of forty steps is no end.
    section = WriteReplay(enabled=True, rows=2, max_tokens=8, temperature=1e-3)
    context = make_context(tmp_path / "stage")
    with pytest.raises(
        ContractError,
        match=r"write_replay: none of 8 rows that the base wrote can be used: 8 no end within "
        r"max_tokens; raise write_replay.max_tokens=8, lower write_replay.temperature=0.001, or ",
    ):
        write_replay.execute(section, context, base=tiny_base)
    shouting = tmp_path / "base"
    shutil.copytree(tiny_base, shouting)
    (shouting / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ContractError, match="the base cannot write rows itself: chat template: re"):
        write_replay.execute(SECTION, make_context(tmp_path / "other"), base=shouting)
    config = micro_config(
        tmp_path / "state",
        prepare_base={"source": {"kind": "folder", "path": str(shouting)}},
        prepare_data=MICRO_DATA | {"replay": {"written": 0.1}},
        write_replay=SECTION.model_dump(),
    )
    (problem,) = written_problems(config)
    assert "the base cannot write rows itself" in str(problem)


def test_the_likeliest_words_are_those_of_a_served_model(tiny_base: Path) -> None:
    """Rows of different lengths that are written at once are what each is alone."""
    model, tokenizer = load_model(tiny_base, "cpu"), load_tokenizer(tiny_base)
    prompts = [tokenizer(text)["input_ids"] for text in ("Return the", "A file that is", "If")]
    found = continued(
        model, prompts, ["a", "b", "c"], {tokenizer.eos_token_id}, Sampling(12, 1e-4), 0
    )
    alone = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=tokenizer.eos_token_id,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert found == alone


def test_nothing_is_written_beyond_the_positions_of_the_base(tiny_base: Path) -> None:
    model = load_model(tiny_base, "cpu")
    positions = model.config.max_position_embeddings
    prompt = [5] * (positions - 3)
    (found,) = continued(model, [prompt], ["a"], set(), Sampling(12), 0)
    assert len(found) == 3
    assert continued(model, [[5] * positions], ["a"], set(), Sampling(12), 0) == [[]]


def prepared(folder: Path, written: Path | None, **fields: Any) -> tuple[Path, dict[str, float]]:
    context = make_context(folder)
    section = PrepareData.model_validate(MICRO_DATA | fields)
    return context.out, prepare_data.execute(section, context, written=written)


def test_a_night_trains_on_its_share_of_what_the_base_wrote(
    written: Path, tiny_data: Path, tmp_path: Path
) -> None:
    data, metrics = prepared(tmp_path, written, replay={"written": 0.05})
    rows = read_rows(data / "train.jsonl")
    own = {normalised(row) for row in read_rows(written / "written.jsonl")}
    mix = json.loads((data / "data_card.json").read_text())["mix"]
    assert mix == {"new": 64, "written": 3}
    assert sum(normalised(row) in own for row in rows) == 3
    assert metrics["written_rows"] == metrics["replayed_rows"] == 3
    assert metrics["train_rows"] == 67
    # What is measured on is as it was.
    for path in [tiny_data / "heldout.jsonl", *(tiny_data / "evaluation").glob("*.jsonl")]:
        assert (data / path.relative_to(tiny_data)).read_bytes() == path.read_bytes()


def test_what_is_measured_on_does_not_come_in_through_what_the_base_wrote(
    tiny_data: Path, tmp_path: Path
) -> None:
    held: list[Row] = read_rows(tiny_data / "heldout.jsonl", 3)
    fine = conversation("Who sleeps in the old mill?", "Nobody but the swifts.")
    source = tmp_path / "written"
    write_jsonl(source / "written.jsonl", [*held, fine])
    data, metrics = prepared(tmp_path / "stage", source, replay={"written": 0.5})
    assert metrics["measured_written_rows"] == 3
    assert metrics["written_rows"] == 1
    trained = read_rows(data / "train.jsonl")
    assert fine in trained
    assert not any(row in trained for row in held)


def test_nor_what_earlier_nights_of_a_ledger_hold_out(tiny_base: Path, tmp_path: Path) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, tmp_path / "rows")
    store = Store(config.state)
    write_chats(tmp_path / "rows/a.jsonl", map(chat, range(30)))
    first = materialise(store, ledger_night(config)["prepare_data"].digest)
    write_chats(tmp_path / "rows/b.jsonl", map(chat, range(30, 60)))
    ledger = materialise(store, ledger_night(config)["extend_ledger"].digest)
    # The answer alone is measured on, whatever was asked.
    answers = [row["messages"][1]["content"] for row in read_rows(first / "heldout.jsonl")]
    assert answers
    fine = conversation("Who sleeps in the old mill?", "Nobody but the swifts.")
    source = tmp_path / "written"
    quoting = [conversation("Go on.", f"As I said: {answer}") for answer in answers]
    write_jsonl(source / "written.jsonl", [*quoting, fine])
    section = config.prepare_data.model_copy(
        update={"replay": config.prepare_data.replay.model_copy(update={"written": 0.5})}
    )
    context = replace(make_context(tmp_path / "stage"), store=store)
    metrics = prepare_data.execute(section, context, ledger=ledger, written=source)
    assert metrics["measured_written_rows"] == len(answers)
    assert metrics["written_rows"] == 1
    assert json.loads((context.out / "data_card.json").read_text())["mix"]["written"] == 1


def test_a_line_writes_once_and_each_night_draws_anew(base: Path, tmp_path: Path) -> None:
    def night(number: int) -> tuple[Performed, set[str]]:
        config = micro_config(
            tmp_path / "state",
            prepare_base={"source": {"kind": "folder", "path": str(base)}},
            write_replay=SECTION.model_dump(),
            prepare_data={
                "source": {"kind": "stdlib", "night": number},
                "max_rows": 57,
                "max_evaluation_rows": 8,
                "replay": {"written": 0.05},
            },
            train_adapter={"enabled": False, "optimisation": {"max_steps": 1}},
            continue_train={"enabled": False, "optimisation": {"max_steps": 1}},
            **{
                name: {"enabled": False}
                for name in (*OFF, "evaluate")
                if name not in {"train_adapter", "continue_train"}
            },
        )
        performed = Performed(config)
        walk(chain, config, performed)
        store = Store(config.state)
        own = read_rows(
            materialise(store, performed.records["write_replay"].digest) / "written.jsonl"
        )
        data = materialise(store, performed.records["prepare_data"].digest)
        trained = {normalised(row) for row in read_rows(data / "train.jsonl")}
        return performed, trained & set(map(normalised, own))

    (first, drawn), (second, anew) = night(1), night(2)
    assert [*first.records] == ["prepare_base", "write_replay", "prepare_data"]
    assert first.records["write_replay"] == second.records["write_replay"]
    assert len(drawn) == len(anew) == 3
    assert drawn != anew
