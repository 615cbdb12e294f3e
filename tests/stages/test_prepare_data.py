"""Rows become a night: read, divided, written, and every bad one named."""

import json
import random
import re
import statistics
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from requant.config.data import PrepareData
from requant.corpus import corpus_digest
from requant.data.artifact import CARD_NAME
from requant.data.chat_template import Rules, read_rules
from requant.errors import ConfigError, ContractError, RequantError
from requant.evaluation.tasks import choice_documents
from requant.machine.library_noise import log_only_errors
from requant.stages import prepare_data
from requant.store.manifest import describe
from tests.stages.conftest import MICRO_DATA, make_context
from tests.support.row_files import hub_section, read, rows, section, write


def test_the_demo_writes_a_night_a_heldout_part_and_three_tasks(tiny_data: Path) -> None:
    assert len(read(tiny_data / "train.jsonl")) == MICRO_DATA["max_rows"]
    assert len(read(tiny_data / "heldout.jsonl")) > 100
    tasks = [yaml.safe_load(path.read_text()) for path in (tiny_data / "evaluation").glob("*.yaml")]
    assert {task["task"] for task in tasks} == {
        "describe_choice",
        "heldout_perplexity",
        "old_perplexity",
    }
    for task in tasks:
        name = task["dataset_kwargs"]["data_files"]["test"]
        assert len(read(tiny_data / "evaluation" / name)) == MICRO_DATA["max_evaluation_rows"]


def test_every_choice_has_one_right_answer_from_the_heldout_part(tiny_data: Path) -> None:
    answers = {
        row["messages"][0]["content"]: row["messages"][1]["content"]
        for row in read(tiny_data / "heldout.jsonl")
    }
    documents = read(tiny_data / "evaluation" / "describe_choice.jsonl")
    for document in documents:
        assert len(set(document["choices"])) == 4
        assert document["choices"][document["answer"]] == answers[document["question"]]
        assert set(document["choices"]) <= set(answers.values())
    assert len({document["answer"] for document in documents}) > 1


def test_the_length_of_an_answer_does_not_give_it_away() -> None:
    draw = random.Random(0)
    # Docstrings: many short ones, a few very long ones.
    sizes = [int(draw.lognormvariate(5, 1)) + 1 for _ in range(300)]
    heldout = [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": f"{number:04}".ljust(size, "x")},
            ]
        }
        for number, size in enumerate(sizes)
    ]
    documents = choice_documents(heldout, len(heldout), seed=0)
    ranks = Counter(
        sorted(map(len, each["choices"])).index(len(each["choices"][each["answer"]]))
        for each in documents
    )
    assert len(documents) == 300
    # 75 of each are expected, with a standard deviation of 7.5.
    assert all(45 <= ranks[rank] <= 105 for rank in range(4)), ranks
    spread = [max(map(len, each["choices"])) / min(map(len, each["choices"])) for each in documents]
    assert statistics.median(spread) < 1.2


def test_the_same_seed_gives_the_same_bytes(tiny_data: Path, tmp_path: Path) -> None:
    again = make_context(tmp_path / "again")
    prepare_data.execute(PrepareData.model_validate(MICRO_DATA), again)
    assert describe(again.out) == describe(tiny_data)
    other = make_context(tmp_path / "other", seed=1)
    prepare_data.execute(PrepareData.model_validate(MICRO_DATA), other)
    assert read(other.out / "train.jsonl") != read(tiny_data / "train.jsonl")


def test_files_are_cut_without_overlap_and_alike_in_either_format(tmp_path: Path) -> None:
    import datasets

    train = write(tmp_path / "train.jsonl", rows(0, 60) + rows(0, 20))
    text = tmp_path / "old.txt"
    text.write_text("The old skill.\n\nIn two paragraphs.\n" * 30)
    context = make_context(tmp_path / "jsonl")
    metrics = prepare_data.execute(section(train, old_text=text), context)
    kept = {json.dumps(row) for row in read(context.out / "train.jsonl")}
    heldout = {json.dumps(row) for row in read(context.out / "heldout.jsonl")}
    assert kept and heldout and not kept & heldout
    assert metrics["train_rows"] + metrics["heldout_rows"] == 80
    assert {path.stem for path in (context.out / "evaluation").iterdir()} == {
        "heldout_perplexity",
        "old_perplexity",
        "response_choice",
    }
    table = datasets.Dataset.from_list(rows(0, 60) + rows(0, 20))
    table.to_parquet(str(tmp_path / "train.parquet"))
    other = make_context(tmp_path / "parquet")
    prepare_data.execute(section(tmp_path / "train.parquet", old_text=text), other)
    assert describe(other.out) == describe(context.out)


def test_more_rows_leave_what_is_held_out_held_out(tmp_path: Path) -> None:
    few, many = make_context(tmp_path / "few"), make_context(tmp_path / "many")
    prepare_data.execute(section(write(tmp_path / "few.jsonl", rows(0, 100))), few)
    prepare_data.execute(section(write(tmp_path / "many.jsonl", rows(0, 200))), many)
    before = {json.dumps(row) for row in read(few.out / "heldout.jsonl")}
    after = {json.dumps(row) for row in read(many.out / "heldout.jsonl")}
    assert before < after


def test_max_rows_keeps_a_part_of_what_a_larger_one_keeps(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", rows(0, 80))
    kept = []
    for count in (5, 20):
        context = make_context(tmp_path / str(count))
        prepare_data.execute(section(train, max_rows=count), context)
        kept.append([json.dumps(row) for row in read(context.out / "train.jsonl")])
    assert [len(part) for part in kept] == [5, 20]
    assert set(kept[0]) < set(kept[1])


def test_prompt_and_response_columns_become_conversations(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"q": f"{n}?", "a": f"{n}!", "x": 1} for n in range(20)])
    context = make_context(tmp_path)
    columns = {"messages": None, "prompt": "q", "response": "a"}
    prepare_data.execute(section(train, columns=columns), context)
    for row in read(context.out / "train.jsonl"):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        question, answer = (message["content"] for message in row["messages"])
        assert question.rstrip("?") == answer.rstrip("!")


def test_a_given_heldout_part_that_overlaps_is_refused_by_row(tmp_path: Path) -> None:
    heldout_rows = rows(4, 8)
    heldout_rows[0]["messages"][0]["content"] = "HOW  much is 4\nand one?"
    train, heldout = (
        write(tmp_path / "train.jsonl", rows(0, 6)),
        write(tmp_path / "heldout.jsonl", heldout_rows),
    )
    with pytest.raises(
        ContractError,
        match=r"2 of 6 .*: .*train.jsonl, line 5 is .*heldout.jsonl, line 1: .*How much is 4",
    ):
        prepare_data.execute(section(train, heldout), make_context(tmp_path))


BAD_LINES = {
    '{"messages": [{"role": "robot", "content": "x"}]}': "messages[0].role is 'robot'",
    '{"messages": [{"role": "assistant", "content": "  "}]}': "messages[0].content is '  '",
    '{"messages": [{"role": "user", "content": "x"}]}': "the last message is by 'user'",
    '{"messages": []}': "messages is []",
    '{"messages": "x"}': "messages is 'x'",
    '{"messages": [{"role": "assistant", "content": 3}]}': "messages[0].content is 3",
    '{"texts": "x"}': "has no column 'messages', nor those of another format (found ['texts'])",
    '{"text": " "}': "text is ' '; expected non-empty text",
    '{"messages": [': "is not JSON (Expecting value: line 1 column 15 (char 14)): "
    '\'{"messages": [\'; expected one object a line, such as {"messages": [...]}: write the line '
    "anew with json.dumps, or remove it",
    f'{{"a": {"9" * 5000}}}': "is not JSON (a whole number of 5000 digits; numbers that long are "
    'not read): \'{"a": 999',
    '["x"]': "is ['x']; expected an object with named columns",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_first_bad_row_is_named_by_file_line_and_value(tmp_path: Path, line: str) -> None:
    good = "".join(json.dumps(row) + "\n" for row in rows(0, 3))
    train = tmp_path / "train.jsonl"
    train.write_text(f"{good}\n{line}\n{good}")
    expected = re.escape(f"{train}, line 5: {BAD_LINES[line]}")
    with pytest.raises(ContractError, match=expected):
        prepare_data.execute(section(train), make_context(tmp_path))


def test_a_file_that_is_not_parquet_is_refused_by_name_and_nothing_else_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = tmp_path / "train.parquet"
    train.write_text("no parquet")
    log_only_errors()
    with pytest.raises(ContractError, match=r"train\.parquet: is not Parquet"):
        prepare_data.execute(section(train), make_context(tmp_path))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (pa.table([["a?"], ["b?"], ["c"]], ["prompt", "prompt", "completion"]), "'prompt'"),
        (
            pa.table(
                [
                    pa.array(
                        [[]],
                        pa.list_(pa.struct([("role", pa.string()), ("role", pa.string())])),
                    )
                ],
                ["messages"],
            ),
            r"'role' in 'messages'",
        ),
    ],
)
def test_a_parquet_file_with_two_columns_of_one_name_is_refused(
    tmp_path: Path, table: pa.Table, column: str
) -> None:
    pq.write_table(table, tmp_path / "train.parquet")
    said = rf"train\.parquet: has two columns {column}; .* rename or remove one"
    with pytest.raises(ContractError, match=said):
        prepare_data.execute(section(tmp_path / "train.parquet"), make_context(tmp_path))


def test_rows_that_are_given_twice_are_counted_and_said(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, rows(0, 20)) for name in ("a.jsonl", "b.jsonl"))
    both = PrepareData.model_validate(
        {"source": {"kind": "files", "train": [str(first), str(second)]}}
    )
    context = make_context(tmp_path / "twice")
    metrics = prepare_data.execute(both, context)
    assert metrics["duplicate_rows"] == 20
    (said,) = [text for text in context.reporter.messages if "repeat" in text]
    assert said.startswith("20 of 40 rows repeat an earlier one, case and white space aside")
    once = make_context(tmp_path / "once")
    assert prepare_data.execute(section(first), once)["duplicate_rows"] == 0
    assert not any("repeat" in text for text in once.reporter.messages)


@pytest.mark.parametrize("name", ["week[1].parquet", "a::b.parquet", "*.parquet", "ü {1}?.parquet"])
def test_a_parquet_file_is_opened_by_its_name_and_no_other(tmp_path: Path, name: str) -> None:
    # Each is what some name would match as a pattern.
    for number, other in enumerate((name, "week1.parquet", "a", "ü {1}x.parquet")):
        columns = {"prompt": [f"{number}-{row}" for row in range(9)], "completion": ["yes"] * 9}
        with (tmp_path / other).open("wb") as file:
            pq.write_table(pa.table(columns), file)
    context = make_context(tmp_path / "run")
    prepare_data.execute(section(tmp_path / name), context)
    parts = [(context.out / f"{part}.jsonl").read_text() for part in ("train", "heldout")]
    read = [json.loads(line)["messages"][0]["content"] for line in "".join(parts).splitlines()]
    assert sorted(read) == [f"0-{row}" for row in range(9)]


def test_digests_follow_the_bytes_not_the_paths(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", rows(0, 9))
    moved = write(tmp_path / "b.jsonl", rows(0, 9))
    changed = write(tmp_path / "c.jsonl", rows(0, 10))
    digest = prepare_data.content_digests(section(first))
    assert digest == prepare_data.content_digests(section(moved))
    assert digest != prepare_data.content_digests(section(changed))
    both = prepare_data.content_digests(section(first, changed, old_text=moved))
    assert set(both) == {"train.0", "heldout", "old_text"}
    with pytest.raises(ConfigError, match=r"source\.train\.0: .*absent\.jsonl is not a file"):
        prepare_data.content_digests(section(tmp_path / "absent.jsonl"))


def test_a_hub_dataset_is_taken_from_the_cache_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "c" * 40
    home = tmp_path / "hub" / "datasets--owner--rows"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    write(home / "snapshots" / commit / "train.jsonl", rows(0, 40))
    write(home / "snapshots" / commit / "test.jsonl", rows(40, 48))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    context = make_context(tmp_path / "run")
    metrics = prepare_data.execute(hub_section(heldout_split="test"), context)
    assert (metrics["train_rows"], metrics["heldout_rows"]) == (40, 8)
    digests = prepare_data.content_digests(hub_section())
    assert digests == {"commit": commit, "old_text": corpus_digest()}
    with pytest.raises(RequantError, match=r"owner/rows has no split 'nights' of subset None"):
        prepare_data.execute(hub_section(train_split="nights"), make_context(tmp_path / "bad"))


def test_any_rows_become_a_dataset_that_says_what_it_is(tmp_path: Path) -> None:
    mixed = [
        *({"instruction": f"{n}?", "input": "", "output": f"{n}!", "id": n} for n in range(20)),
        *({"text": f"The number {n}."} for n in range(20)),
        *({"prompt": f"{n} + 1?", "completion": str(n + 1)} for n in range(20)),
    ]
    mixed[0]["output"] = "wrong"
    weighted = rows(100, 101)
    weighted[0]["messages"][1]["weight"] = 0
    context = make_context(tmp_path / "run")
    train = write(tmp_path / "t.jsonl", mixed + weighted)
    metrics = prepare_data.execute(
        section(train, clock="2024-05-06T00:00:00", heldout_fraction=0.4), context
    )
    assert metrics["rows_with_ignored_fields"] == 20
    assert context.reporter.messages == [
        f"{train}: 61 rows, 20 Alpaca (instruction, input, output); 20 plain text; 20 prompt and "
        "completion; 1 messages",
        f"{train}: not read: id (20 rows)",
    ]
    assert json.loads((context.out / CARD_NAME).read_text()) == {
        "formats": {
            "Alpaca (instruction, input, output)": 20,
            "messages": 1,
            "plain text": 20,
            "prompt and completion": 20,
        },
        "ignored": {"id": 20},
        "rows": 61,
        "turns_without_loss": 1,
    }
    assert read_rules(context.out) == Rules(clock="2024-05-06T00:00:00")
    documents = read(context.out / "evaluation" / "response_choice.jsonl")
    assert all(document["question"] for document in documents)
    with pytest.raises(ContractError, match="id: nothing reads this"):
        prepare_data.execute(
            section(train, unknown_fields="refuse"), make_context(tmp_path / "refused")
        )


def test_a_group_is_on_one_side_and_one_unit(tmp_path: Path) -> None:
    tickets = [{**row, "ticket": n // 4} for n, row in enumerate(rows(0, 80))]
    path = write(tmp_path / "rows.jsonl", tickets)
    columns = {"group": "ticket"}
    context = make_context(tmp_path / "grouped")
    metrics = prepare_data.execute(
        section(path, columns=columns, heldout_fraction=0.3, unknown_fields="refuse"), context
    )
    train, heldout = (read(context.out / f"{name}.jsonl") for name in ("train", "heldout"))
    sides = [{row["group"] for row in part} for part in (train, heldout)]
    assert sides[0].isdisjoint(sides[1])
    assert sides[0] | sides[1] == {str(n) for n in range(20)}
    assert len(heldout) == 4 * len(sides[1])
    for task in ("heldout_perplexity", "response_choice"):
        documents = read(context.out / "evaluation" / f"{task}.jsonl")
        assert len({each["cluster"] for each in documents}) == len(sides[1])
        assert metrics[f"{task}_documents"] == len(heldout)
        assert metrics[f"{task}_units"] == len(sides[1])
    assert metrics["old_perplexity_units"] == metrics["old_perplexity_documents"]

    both = write(tmp_path / "both.jsonl", [{**rows(90, 91)[0], "ticket": 7}])
    with pytest.raises(
        ContractError,
        match=r"4 of 80 training rows are of groups that are held out too; the first: .*line 29 "
        r"and .*both.jsonl, line 1 are both of '7'",
    ):
        prepare_data.execute(section(path, both, columns=columns), make_context(tmp_path / "b"))
    missing = write(tmp_path / "missing.jsonl", rows(0, 3))
    with pytest.raises(ContractError, match=r"line 1: ticket is None; expected a text or a whole"):
        prepare_data.execute(section(missing, columns=columns), make_context(tmp_path / "m"))


def test_what_groups_on_both_sides_repeat_is_not_measured_on(tmp_path: Path) -> None:
    tickets = [{**row, "ticket": n // 4} for n, row in enumerate(rows(0, 80))]
    # Every ticket ends with the same turn.
    ends = [{**rows(99, 100)[0], "ticket": n} for n in range(20)]
    path = write(tmp_path / "rows.jsonl", [*tickets, *ends])
    context = make_context(tmp_path / "made")
    columns = {"group": "ticket"}
    metrics = prepare_data.execute(section(path, columns=columns, heldout_fraction=0.3), context)
    train, heldout = (read(context.out / f"{name}.jsonl") for name in ("train", "heldout"))
    texts = [{row["messages"][-1]["content"] for row in part} for part in (train, heldout)]
    assert texts[0].isdisjoint(texts[1])
    sides = [{row["group"] for row in part} for part in (train, heldout)]
    assert sides[0].isdisjoint(sides[1])
    assert len(train) == 5 * len(sides[0])
    assert metrics["heldout_rows"] == len(heldout) == 4 * len(sides[1])
    said = f"{len(sides[1])} held-out rows repeat a training row of another group and are left out"
    assert any(text.startswith(said) for text in context.reporter.messages)  # type: ignore[attr-defined]
