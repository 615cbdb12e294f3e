"""Prompts end where training has the answer begin, whatever a template puts before it."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from requant.evaluation.answering import answering_model

HEAD = "{% for m in messages %}<{{ m.role }}>"
TAIL = "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
THINKING = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"


@pytest.mark.parametrize(("between", "expected"), [(THINKING, "<think>\n\n</think>\n\n"), ("", "")])
def test_what_a_template_puts_before_an_answer_is_part_of_the_prompt(
    between: str, expected: str
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    tokenizer.chat_template = HEAD + between + TAIL

    def never() -> None:
        raise AssertionError

    model = answering_model(tokenizer, {}, never)
    history = [{"role": "user", "content": "q"}]
    assert model.apply_chat_template(history) == "<user>q\n<assistant>"
    model.as_trained = True
    assert model.apply_chat_template(history) == f"<user>q\n<assistant>{expected}"
