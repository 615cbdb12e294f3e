"""What is wrong with rows is known before the night, and said once."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from requant.config import Config
from requant.config.data import PrepareData
from requant.data.sources import night_rows, read_sources, split_rows
from requant.preflight import find_problems
from tests.stages.conftest import MICRO_DATA
from tests.support.chain import micro_config
from tests.support.looked import looked_here
from tests.support.row_files import read, rows, section, write


def test_a_look_ahead_reads_the_rows_the_stage_reads(tiny_data: Path, tmp_path: Path) -> None:
    train, heldout = (
        write(tmp_path / "t.jsonl", rows(0, 9)),
        write(tmp_path / "h.jsonl", rows(20, 24)),
    )
    given = section(train, heldout)
    sources = read_sources(given, tmp_path / "cache")
    assert [row.row for row in sources.everything] == rows(0, 9) + rows(20, 24)
    assert sources.everything[9].place == f"{heldout}, line 1"
    demo = PrepareData(**MICRO_DATA)
    chosen = night_rows(split_rows(read_sources(demo, tmp_path / "cache"), demo, 0), demo, 0)
    assert read(tiny_data / "train.jsonl") == list(chosen.train)
    assert read(tiny_data / "heldout.jsonl") == list(chosen.heldout)


@pytest.mark.parametrize(
    ("looked", "max_length", "answer", "text"),
    [
        # In a process of its own, as before a night; the others in this one.
        (
            find_problems,
            16,
            "word " * 40,
            "train_adapter.optimisation.max_length: nothing to learn in 9 rows: of the assistant "
            "turns 9 do not fit into optimisation.max_length=16 tokens (raise it)",
        ),
        (
            looked_here,
            96,
            "",
            "prepare_data.source: nothing to learn in 9 rows: of the assistant turns 9 have weight "
            "0 (give the turns that are to be learned weight 1)",
        ),
        (
            looked_here,
            96,
            "alone",
            "prepare_data.source: nothing to learn in 9 rows: of the assistant turns 9 have no "
            "message before them (give each the question it answers)",
        ),
    ],
)
def test_nothing_to_learn_is_known_before_the_night(
    looked: Callable[[Config], Iterable[object]],
    max_length: int,
    answer: str,
    text: str,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    steps = {"max_steps": 1, "max_length": max_length}
    said = [
        {
            "messages": [
                *(row["messages"][:-1] if answer != "alone" else ()),
                {"role": "assistant", "content": f"{answer}{n}"},
            ]
        }
        if answer
        else {"messages": [*row["messages"][:-1], {**row["messages"][-1], "weight": 0}]}
        for n, row in enumerate(rows(0, 9))
    ]
    train, heldout = write(tmp_path / "t.jsonl", said), write(tmp_path / "h.jsonl", rows(20, 24))
    config = micro_config(
        tmp_path / "state",
        prepare_base={"source": {"kind": "folder", "path": str(tiny_base)}},
        prepare_data={"source": {"kind": "files", "train": [str(train)], "heldout": str(heldout)}},
        train_adapter={"optimisation": steps},
        continue_train={"optimisation": steps},
    )
    (found,) = map(str, looked(config))
    assert found.startswith(text)


def test_too_little_calibration_is_known_before_the_night(tiny_base: Path, tmp_path: Path) -> None:
    train, heldout = (
        write(tmp_path / "t.jsonl", rows(0, 9)),
        write(tmp_path / "h.jsonl", rows(20, 24)),
    )
    few = {"calibration_rows": 2, "general_share": 0.0}
    config = micro_config(
        tmp_path / "state",
        prepare_base={"source": {"kind": "folder", "path": str(tiny_base)}},
        prepare_data={"source": {"kind": "files", "train": [str(train)], "heldout": str(heldout)}},
        quantize_base={"method": "gptq", "group_size": 64, **few},
        requantize_gptq={
            "group_size": 64,
            "calibration_rows": 40,
            "general_share": 0.5,
            "candidates": [{}, few, {**few, "group_size": 128}, {**few, "mse": 0.0}],
        },
    )
    found = sorted(looked_here(config))
    short = r": 2 texts of calibration have \d+ tokens, expected at least 128 \({}.calibration_min_"
    assert len(found) == 3, "\n".join(found)
    assert re.match("quantize_base" + short.format("quantize_base"), found[0])
    assert re.match("requantize_gptq" + short.format("requantize_gptq"), found[2])
    assert found[1].startswith("requantize_gptq.candidates.2.group_size: 128 does not divide in_")


def test_a_broken_template_is_one_problem_of_the_base_and_not_of_the_rows(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    train = write(tmp_path / "t.jsonl", rows(0, 20))
    config = micro_config(
        tmp_path / "state",
        prepare_base={"source": {"kind": "folder", "path": str(base)}},
        # Rows of all three parts: trained, held out, and left out tonight.
        prepare_data={"source": {"kind": "files", "train": [str(train)]}, "max_rows": 4},
    )
    found = [line for line in looked_here(config) if "chat template" in line]
    (problem,) = found
    assert problem.startswith(
        f"prepare_base.source: chat template: {base}/chat_template.jinja, line 2: unexpected '}}'"
    )
    assert "(20 rows, the first is" in problem
