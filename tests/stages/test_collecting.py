"""Rows of the hub, and rows that the model's chat template cannot take."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers
from transformers import AutoTokenizer

from requant.collecting.read import Read, require_rows
from requant.collecting.rendering import render_faults
from requant.config.sources import HubRows
from requant.config.training import Optimisation
from requant.data.chat_template import Rules
from requant.errors import ConfigError, ContractError
from tests.support.dialects import CHATML, fast
from tests.support.reads import PAIR, outcome, reads
from tests.support.row_files import write

SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, *PAIR["messages"]]}
CONTROL = {"messages": [{"role": "user", "content": "a <|im_end|> b"}, PAIR["messages"][1]]}
LONG = {"messages": [{"role": "user", "content": "a b " * 99}, PAIR["messages"][1]]}
BAD = Read("week", "a.jsonl, line 9", None, b"[", "is not JSON")


def placed(*rows: dict[str, Any]) -> list[Read]:
    return [
        Read("week", f"a.jsonl, line {number}", row, json.dumps(row).encode(), format="messages")
        for number, row in enumerate(rows, 1)
    ]


def rendered(
    given: Iterable[Read], template: str | None = CHATML, limits: Optimisation | None = None
) -> list[Read]:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.chat_template = template
    return list(render_faults(tokenizer, Rules(), limits, given))


def test_rows_that_cannot_be_rendered_are_quarantined_and_all_others_stay() -> None:
    given = [*placed(PAIR, CONTROL, LONG, {"text": "Plain."}), BAD]
    limits = Optimisation(max_steps=1, max_length=64, too_long="refuse")
    first, control, long, text, bad = rendered(given, limits=limits)
    assert [first, text, bad] == [given[0], given[3], BAD]
    for read, before in ((control, given[1]), (long, given[2])):
        assert (read.row, read.place, read.raw) == (None, before.place, before.raw)
        assert (read.ignored, read.format) == ((), "")
    assert control.reason.startswith("messages[0].content: spells the control token '<|im_end|>'")
    assert "optimisation.max_length=64" in long.reason
    assert rendered(given)[2] == given[2]


def test_text_that_the_template_leaves_out_is_a_fault_of_its_row() -> None:
    drops = CHATML.replace("{{ '<|im_start|>'", "{% if m.role != 'system' %}{{ '<|im_start|>'")
    drops = drops.replace("'<|im_end|>\n' }}", "'<|im_end|>\n' }}{% endif %}", 1)
    good, bad = rendered(placed(PAIR, SYSTEM), drops)
    assert good.row == PAIR
    assert bad.reason.startswith("messages[0] (system): does not occur in what the chat template")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the tokenizer has no chat template, and rows of messages need one"),
        (CHATML.replace("<|im_end|>", ""), "ends without a token that stops the model"),
        ("{% for m in messages %}\n{{ m.content }", "unexpected '}'"),
    ],
)
def test_a_broken_template_stops_the_night_at_the_first_row(
    template: str | None, said: str
) -> None:
    def endless() -> Iterator[Read]:
        yield from placed({"text": "Plain."}, PAIR)
        raise AssertionError("a row after the first that shows it was asked for")

    with pytest.raises(ContractError, match=r"^week: a\.jsonl, line 2: ") as stopped:
        rendered(endless(), template)
    assert said in str(stopped.value)


def test_a_text_on_which_the_tokenizer_gives_up_is_a_bad_row(tmp_path: Path) -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("(x+x+)+y"), "z")
    tokenizer.save_pretrained(tmp_path)
    stuck = {"messages": [{"role": "user", "content": "x" * 5000}, PAIR["messages"][1]]}
    given = placed(PAIR, stuck, PAIR)
    first, bad, last = render_faults(AutoTokenizer.from_pretrained(tmp_path), Rules(), None, given)
    assert [first, last] == [given[0], given[2]]
    assert bad.row is None
    assert bad.reason.startswith(f"{tmp_path}/tokenizer.json: normalizer.pattern.Regex='(x+x+)+y':")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    home = tmp_path / "hub" / "datasets--owner--rows"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c" * 40)
    folder = home / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def rows_of_hub(**fields: Any) -> HubRows:
    return HubRows.model_validate({"kind": "hub", "name": "web", "repo": "owner/rows", **fields})


def test_a_split_of_the_hub_is_read_row_by_row(hub: Path, tmp_path: Path) -> None:
    write(hub / "train.jsonl", [{"text": "a"}, {"text": " "}, {"text": "c"}])
    first, bad, last = reads(rows_of_hub(), tmp_path)
    assert (first.source, first.place, first.row) == (
        "web",
        "owner/rows, split train, row 1",
        {"text": "a"},
    )
    assert (bad.row, bad.reason) == (None, "text is ' '; expected non-empty text")
    assert last.raw == b'{"text":"c"}'
    require_rows(rows_of_hub())
    absent = r"^collect_rows\.sources\.web: owner/rows has no split 'nights' of subset None"
    with pytest.raises(ConfigError, match=absent):
        reads(rows_of_hub(split="nights"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"^collect_rows\.sources\.web\.repo: owner/other@main is"
    ):
        require_rows(rows_of_hub(repo="owner/other"))


def test_a_split_that_cannot_be_read_is_one_bad_read(hub: Path, tmp_path: Path) -> None:
    (hub / "train.jsonl").write_text('{"text": "a"}\n{"text": [')
    (read,) = reads(rows_of_hub(), tmp_path)
    assert outcome([read])[0][0] == "owner/rows, split train"
    assert read.row is None
    assert read.reason.startswith("cannot be read: ")
