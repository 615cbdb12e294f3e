"""What a base writes itself: where its turns begin and end, and what of it is left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from requant.data.chat_template import dialect
from requant.data.formats import Row
from requant.data.rows import conversation
from requant.data.written import (
    RULES,
    Kept,
    Say,
    Turns,
    beginning,
    conversations,
    keep,
    text_start,
    texts,
    turns_of,
)
from requant.errors import ContractError
from tests.support.dialects import KINDS, fast


def scripted(tokenizer: Any, script: Mapping[str, str], heard: list[str] | None = None) -> Say:
    """A voice that says for each name what is written for it: up to its first end, as a model."""

    def say(
        prompts: Sequence[Sequence[int]], names: Sequence[str], ends: frozenset[int]
    ) -> list[list[int]]:
        said = []
        for prompt, name in zip(prompts, names, strict=True):
            if heard is not None:
                heard.append(tokenizer.decode(list(prompt)))
            ids = tokenizer(script[name], add_special_tokens=False)["input_ids"]
            end = next((at for at, token in enumerate(ids) if token in ends), len(ids) - 1)
            said.append(ids[: end + 1])
        return said

    return say


def written(tokenizer: Any, script: Mapping[str, str]) -> Kept:
    """Let a scripted base write a row for each name."""
    words, kept = dialect(tokenizer, RULES), Kept()
    begin, say = beginning(words), scripted(tokenizer, script)
    names = list(dict.fromkeys(name.partition("-")[0] for name in script))
    assert isinstance(begin, Turns)
    for row in conversations(words, begin, names, say, kept.left_out):
        keep(words, row, kept)
    assert len(kept.rows) + kept.left_out.total() == len(names)
    return kept


@pytest.mark.parametrize(
    ("template", "opening", "ends"),
    [
        ("chatml", "<|im_start|>user\n", {"<|im_end|>"}),
        ("trimming", "<|im_start|>user\n", {"<|im_end|>"}),
        ("zephyr", "<|user|>\n", {"</s>"}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_base_begins_where_its_template_puts_the_users_words(
    kind: str, template: str, opening: str, ends: set[str]
) -> None:
    tokenizer = fast(kind, template)
    turns = turns_of(dialect(tokenizer, RULES))
    assert turns.opening == opening
    for found in (turns.user_ends, turns.answer_ends):
        assert set(tokenizer.convert_ids_to_tokens(sorted(found))) == ends


def test_the_token_that_ends_a_turn_need_not_be_the_models_own_end() -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.eos_token = "</s>"
    turns = turns_of(dialect(tokenizer, RULES))
    both = set(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))
    assert turns.user_ends == turns.answer_ends == both


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
            r"renders 'Zq7userXv', said by the user, 0 times, and should once and as it is: 'ZQ7U",
        ),
        (
            "{% for m in messages %}{{ m.content ~ m.content }}<|im_end|>{% endfor %}",
            "said by the user, 2 times",
        ),
        (
            "{{ messages[0].content }}<|im_end|>",
            "renders 'Zq7assistantXv', said by the assistant, 0 times",
        ),
        (
            "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
            r"puts ' \[/INST\]' behind the user's words, which begins with no token of the token",
        ),
        ("{{ raise_exception('a system message first') }}", "a system message first"),
    ],
)
def test_a_template_without_such_a_place_is_refused_with_the_reason(
    template: str, text: str
) -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.chat_template = template
    with pytest.raises(ContractError, match=text) as caught:
        turns_of(dialect(tokenizer, RULES))
    assert "write_replay: the base cannot write rows itself: " in str(caught.value)
    assert "; set write_replay.enabled=false (and prepare_data.replay.written=0), or take" in str(
        caught.value
    )


def test_a_base_without_a_template_begins_with_its_first_token() -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.chat_template = None
    words = dialect(tokenizer, RULES)
    assert beginning(words) == tokenizer.bos_token_id
    tokenizer.bos_token = None
    assert beginning(words) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ContractError, match="no chat template, and its tokenizer neither bos_tok"):
        text_start(tokenizer)


def test_the_question_is_put_to_the_base_as_a_served_model_is_given_it() -> None:
    tokenizer = fast("byte_level", "chatml")
    words, heard = dialect(tokenizer, RULES), list[str]()
    script = {"0-user": " What does abs do?<|im_end|>", "0-assistant": "Returns it.<|im_end|>"}
    say = scripted(tokenizer, script, heard)
    (row,) = conversations(words, turns_of(words), ["0"], say, Counter())
    assert row == conversation("What does abs do?", "Returns it.")
    prompt = tokenizer.apply_chat_template(
        row["messages"][:1], tokenize=False, add_generation_prompt=True
    )
    assert heard == ["<|im_start|>user\n", prompt]


def test_what_cannot_be_trained_on_is_left_out_and_counted() -> None:
    end = "<|im_end|>"
    script = {
        **{f"{name}-user": f"And round?{end}" for name in ("good", "again", "cut", "mute", "odd")},
        "good-assistant": f"Rounds a number.{end}",
        "again-assistant": f"rounds a  NUMBER.{end}",
        "cut-assistant": "Rounds a number, and then",
        "mute-assistant": f" \n{end}",
        "odd-assistant": f"Rounds <s> a number.{end}",
        "shout-user": f"What does <|im_start|>system mean?{end}",
        "silent-user": end,
        "long-user": "What does abs do",
    }
    kept = written(fast("byte_level", "chatml"), script)
    assert kept.rows == [conversation("And round?", "Rounds a number.")]
    assert kept.left_out == {
        "duplicate": 1,
        "no end within max_tokens": 2,
        "empty": 2,
        "control token in a text": 2,
    }


def test_half_a_character_is_left_out() -> None:
    tokenizer = fast("byte_level", "chatml")
    half = tokenizer("🙂", add_special_tokens=False)["input_ids"][:1]
    words, left_out = dialect(tokenizer, RULES), Counter[str]()
    end = tokenizer.eos_token_id

    def say(
        prompts: Sequence[Sequence[int]], names: Sequence[str], ends: frozenset[int]
    ) -> list[list[int]]:
        return [[*half, end] for _ in prompts]

    assert list(conversations(words, turns_of(words), ["0"], say, left_out)) == []
    assert left_out == {"broken character": 1}


def test_a_text_is_kept_whole_or_not_at_all() -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.chat_template = None
    words, kept = dialect(tokenizer, RULES), Kept()
    script = {"0": "Returns the absolute value.<|im_end|>", "1": "Returns the", "2": "R<|im_end|>"}
    say = scripted(tokenizer, script)
    for row in texts(words, text_start(tokenizer), [*script], say, kept.left_out):
        keep(words, row, kept)
    rows: list[Row] = [{"text": "Returns the absolute value."}, {"text": "R"}]
    assert kept.rows == rows
    assert kept.left_out == {"no end within max_tokens": 1}
