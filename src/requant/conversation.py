"""Conversations as the model sees them: rows, the chat template, and which tokens carry loss."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from requant.errors import ContractError

IGNORED = -100
"""Label of a token without loss (torch.nn.CrossEntropyLoss's default ignore_index)."""

Message = Mapping[str, str]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One assistant turn and everything before it, as text."""

    prompt: str
    completion: str


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Read `{"messages": [...]}` rows of a prepared .jsonl file, the first `limit` of them."""
    with path.open() as file:
        lines = list(islice(file, limit))
    return [json.loads(line) for line in lines]


def render_text(tokenizer: Any, messages: Iterable[Message]) -> str:
    """Render a whole conversation through the tokenizer's chat template."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False))


def assistant_samples(tokenizer: Any, messages: Iterable[Message]) -> list[Sample]:
    """Cut a conversation into one sample for each assistant turn.

    Each turn is rendered as the last one, because that is how the model will meet it: templates
    such as Qwen3's render the last assistant turn differently from earlier ones.

    Raises:
        ContractError: If the template's generation prompt is not a prefix of the rendered turn;
            then no cut between prompt and completion is right.
    """
    conversation = list(messages)
    samples = []
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = str(
            tokenizer.apply_chat_template(
                conversation[:index], tokenize=False, add_generation_prompt=True
            )
        )
        whole = render_text(tokenizer, conversation[: index + 1])
        if not whole.startswith(prompt):
            raise ContractError(
                "chat template: the generation prompt is not a prefix of the rendered assistant "
                f"turn, so the loss cannot be kept to the assistant's tokens; prompt ends "
                f"{prompt[-40:]!r}, conversation starts {whole[: len(prompt)][-40:]!r}; "
                "give the model a template that renders both alike"
            )
        samples.append(Sample(prompt=prompt, completion=whole[len(prompt) :]))
    return samples


def encode_sample(tokenizer: Any, sample: Sample, max_length: int) -> dict[str, list[int]] | None:
    """Turn a sample into token ids with labels on the completion only.

    Prompt and completion are tokenized apart, so that no token straddles the cut.

    Args:
        tokenizer: Of the model.
        sample: The text.
        max_length: Tokens; the prompt is cut from the left first, so that the answer stays.

    Returns:
        `input_ids` and `labels` of equal length at most `max_length`, or None where the completion
        has no token.
    """
    prompt = tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    completion = tokenizer(sample.completion, add_special_tokens=False)["input_ids"][:max_length]
    room = max_length - len(completion)
    prompt = prompt[-room:] if room else []
    if not completion:
        return None
    return {
        "input_ids": prompt + completion,
        "labels": [IGNORED] * len(prompt) + completion,
    }


def encode_rows(tokenizer: Any, rows: Iterable[Row], max_length: int) -> list[dict[str, list[int]]]:
    """Encode every assistant turn of every row; see `encode_sample`."""
    encoded = (
        encode_sample(tokenizer, sample, max_length)
        for row in rows
        for sample in assistant_samples(tokenizer, row["messages"])
    )
    return [sample for sample in encoded if sample is not None]
