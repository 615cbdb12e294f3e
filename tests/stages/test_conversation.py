"""Loss sits on the assistant's tokens, every one of them and no other."""

from pathlib import Path

import pytest

from requant.conversation import IGNORED, assistant_samples, encode_rows
from requant.errors import ContractError
from requant.models import load_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does abs do?"},
    {"role": "assistant", "content": "Returns the absolute value."},
    {"role": "user", "content": "And round?"},
    {"role": "assistant", "content": "Rounds a number."},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return load_tokenizer(tiny_base)


def test_every_assistant_turn_is_one_sample_that_ends_its_turn(tokenizer) -> None:
    first, second = assistant_samples(tokenizer, TALK)
    assert first.completion.startswith("Returns the absolute value.<|im_end|>")
    assert "Rounds" not in first.prompt + first.completion
    assert "Returns the absolute value." in second.prompt
    assert second.prompt.endswith("<|im_start|>assistant\n")


def test_labels_are_the_completion_and_nothing_else(tokenizer) -> None:
    for row, sample in zip(
        encode_rows(tokenizer, [{"messages": TALK}], 512),
        assistant_samples(tokenizer, TALK),
        strict=True,
    ):
        labelled = [token for token in row["labels"] if token != IGNORED]
        assert tokenizer.decode(labelled) == sample.completion
        assert tokenizer.decode(row["input_ids"]) == sample.prompt + sample.completion


def test_a_long_prompt_is_cut_from_the_left_and_the_answer_stays(tokenizer) -> None:
    (_, row) = encode_rows(tokenizer, [{"messages": TALK}], 24)
    assert len(row["input_ids"]) == len(row["labels"]) == 24
    labelled = [token for token in row["labels"] if token != IGNORED]
    assert "Rounds a number." in tokenizer.decode(labelled)


def test_a_template_without_a_clean_cut_is_refused(tokenizer, tiny_base: Path) -> None:
    other = load_tokenizer(tiny_base)
    other.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<answer>{% endif %}"
    )
    with pytest.raises(ContractError, match="generation prompt is not a prefix"):
        assistant_samples(other, TALK)
