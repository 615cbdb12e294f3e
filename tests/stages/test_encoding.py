"""Training text is what serving sees: whole ids, loss on the answer, nothing lost unsaid."""

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from requant.data.chat_template import Rules
from requant.data.samples import encode_rows
from requant.data.turns import IGNORED
from requant.models.tokenizer import load_tokenizer
from tests.support.dialects import KINDS, TALK, TEMPLATES, encode, fast, labelled


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


WORDS = st.text(st.sampled_from("abcd éß日🙂.,'\n 12[]<>/|"), min_size=1, max_size=24).filter(
    lambda text: bool(text.strip())
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=WORDS, answers=st.lists(WORDS, min_size=1, max_size=2))
def test_what_is_trained_is_what_the_template_gives(
    kind: str, template: str, question: str, answers: list[str]
) -> None:
    tokenizer = fast(kind, template)
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}]
    found = encode(tokenizer, messages)
    assert found.report.problems == []
    assert len(found.samples) == len(answers)
    straddling = 0.0
    for turn, sample in enumerate(found.samples, 1):
        until = messages[: 2 * turn]
        whole = tokenizer.apply_chat_template(until, tokenize=True, return_dict=False)
        assert sample["input_ids"] == whole
        start = sample["labels"].count(IGNORED)
        assert labelled(sample) == whole[start:]
        served = tokenizer.apply_chat_template(
            until[:-1], tokenize=True, return_dict=False, add_generation_prompt=True
        )
        # What carries no loss is what a served model is given, token for token.
        assert whole[:start] == served[:start]
        # And nothing of the answer is without loss: the first token with loss is no later than the
        # first that the prompt does not share.
        assert start <= len(served)
        assert start == len(served) or whole[start] != served[start]
        straddling += len(served) - start
        ends = [at for at, token in enumerate(whole) if token == tokenizer.eos_token_id]
        assert ends[-1] >= start
    assert found.report.counts["straddling_tokens"] == straddling


def test_a_text_past_the_length_a_tokenizer_names_is_no_warning(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.model_max_length = 8
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(tokenizer("word " * 40)["input_ids"]) > tokenizer.model_max_length
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_sentencepiece_answer_is_not_given_a_space_that_serving_never_sees() -> None:
    tokenizer = fast("always", "bare")
    sample = encode(tokenizer, TALK[1:3]).samples[0]
    apart = tokenizer("Returns the absolute value.</s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(apart)[0].startswith("▁")
    assert labelled(sample) != apart
    assert not tokenizer.convert_ids_to_tokens(labelled(sample))[0].startswith("▁")


def test_every_assistant_turn_is_one_sample_that_ends_its_turn(tokenizer: Any) -> None:
    first, second = encode(tokenizer, TALK).samples
    assert tokenizer.decode(labelled(first)).startswith("Returns the absolute value.<|im_end|>")
    assert "Rounds" not in tokenizer.decode(first["input_ids"])
    assert "Returns the absolute value." in tokenizer.decode(second["input_ids"])
    assert tokenizer.decode(labelled(second)).startswith("Rounds a number.<|im_end|>")


def test_a_turn_of_weight_0_is_context_without_loss(tokenizer: Any) -> None:
    talk = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    found = encode(tokenizer, talk)
    (sample,) = found.samples
    assert "absolute value" in tokenizer.decode(sample["input_ids"])
    assert "absolute value" not in tokenizer.decode(labelled(sample))
    assert found.report.counts["turns_without_loss"] == 1


def test_a_cut_drops_the_oldest_turn_then_the_question_and_never_the_answer() -> None:
    tokenizer = fast("byte_level", "chatml")
    talk = [*TALK[:3], {"role": "user", "content": "And round? " * 12}, TALK[4]]
    whole = len(encode(tokenizer, talk).samples[1]["input_ids"])
    without_oldest = len(encode(tokenizer, [talk[0], *talk[3:]]).samples[0]["input_ids"])
    for room in (without_oldest, without_oldest - 20):
        found = encode(tokenizer, [*talk[:2], {**talk[2], "weight": 0}, *talk[3:]], room)
        (sample,) = found.samples
        text = tokenizer.decode(sample["input_ids"])
        assert len(sample["input_ids"]) <= room
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert "absolute" not in text
        assert tokenizer.decode(labelled(sample)) == "Rounds a number.<|im_end|>\n"
        counts = found.report.counts
        assert counts["cut_samples"] == 1
        assert counts["lost_tokens"] == whole - len(sample["input_ids"])
    found = encode(tokenizer, talk[3:], 16)
    assert found.samples == []
    assert found.report.counts["dropped_samples"] == 1
    assert found.report.counts["lost_tokens"] == len(
        encode(tokenizer, talk[3:]).samples[0]["labels"]
    )


def test_too_long_may_be_dropped_refused_or_for_measuring_clipped() -> None:
    tokenizer = fast("byte_level", "chatml")
    talk = [TALK[1], {"role": "assistant", "content": "value " * 40}]
    dropped = encode(tokenizer, talk, 32, too_long="drop")
    assert dropped.report.counts["dropped_samples"] == 1
    (problem,) = encode(tokenizer, talk, 32, too_long="refuse").report.problems
    assert problem.startswith("f, line 1: messages[1] (assistant): with what stands before it ")
    assert "optimisation.max_length=32; raise it" in problem
    (sample,) = encode(tokenizer, talk, 32, too_long="clip").samples
    assert len(sample["input_ids"]) <= 32
    assert tokenizer.decode(labelled(sample)).startswith("value")


def test_a_turn_with_nothing_before_it_is_dropped_or_refused() -> None:
    tokenizer = fast("byte_level", "chatml")
    assert encode(tokenizer, [TALK[2]]).report.counts["dropped_samples"] == 1
    (problem,) = encode(tokenizer, [TALK[2]], too_long="refuse").report.problems
    assert "nothing stands before this turn" in problem


def test_plain_text_carries_loss_everywhere_and_loses_nothing() -> None:
    tokenizer = fast("byte_level", "chatml")
    tokenizer.chat_template = None
    text = "Returns the absolute value. " * 9
    found = encode_rows(tokenizer, [("f, line 1", {"text": text})], Rules(), 16)
    ids = [token for sample in found.samples for token in sample["input_ids"]]
    assert tokenizer.decode(ids) == f"{text}<|im_end|>"
    assert all(sample["input_ids"] == sample["labels"] for sample in found.samples)
    assert found.report.counts["lost_tokens"] == 0


def test_generation_marks_and_prompts_find_the_same_answers(tokenizer: Any) -> None:
    """transformers' way, by marks in the template, where a template has them."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Un, é 🙂."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "  Deux.\n"},
    ]
    for sample, count in zip(encode(tokenizer, messages).samples, (3, 5), strict=True):
        marked = tokenizer.apply_chat_template(
            messages[:count], return_dict=True, return_assistant_tokens_mask=True
        )
        assert sample["input_ids"] == marked["input_ids"]
        mask = marked["assistant_masks"]
        start = sample["labels"].count(IGNORED)
        # Of earlier answers, marked too, each is another sample's.
        assert mask[start] == 1 and mask[start - 1] == 0
        assert sample["labels"][start:] == sample["input_ids"][start:]
        # After the answer's end token the template writes a line's end, which serving never sees.
        tail = zip(sample["input_ids"][start:], mask[start:], strict=True)
        after = [token for token, one in tail if not one]
        assert tokenizer.decode(after) == "\n"
