"""One assistant turn as token ids: encoded in its conversation, and brought to a length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from requant.data.chat_template import Dialect, RowError, render, rendered_ids, text_ids
from requant.data.formats import Row
from requant.data.messages import Message

IGNORED = -100
"""Label of a token without loss (torch.nn.CrossEntropyLoss's default ignore_index)."""

TooLong = Literal["cut", "drop", "refuse"]
Clipped = Literal["cut", "drop", "refuse", "clip"]
"""clip, for measuring only, cuts the answer's end too."""
Sample = dict[str, list[int]]
"""`input_ids` and `labels` of equal length."""


@dataclass(frozen=True)
class Turn:
    """A conversation that ends with an assistant's turn, as the template's own ids."""

    ids: list[int]
    start: int
    """First token that carries loss."""
    prompt_tokens: int
    """Tokens of the prompt encoded alone, as the served model is given it."""


def encode_turn(
    words: Dialect,
    messages: list[Message],
    row: Row,
    as_text: bool,
    whole: str | None = None,
) -> Turn:
    """Encode the last message as a served model would say it: after the prompt that it is given.

    Args:
        words: Tokenizer and rules.
        messages: Up to the assistant's turn.
        row: Its `tools` are rendered too.
        as_text: Encode control tokens that messages spell as ordinary text.
        whole: The rendered messages, where they are known.

    Raises:
        RowError: If the template does not render the prompt as the beginning of the conversation.
    """
    prompt = render(words, messages[:-1], row, prompt=True)
    whole = render(words, messages, row) if whole is None else whole
    if not whole.startswith(prompt):
        raise RowError(
            "generation prompt",
            "chat template: the generation prompt is not a prefix of the rendered assistant turn, "
            f"so the loss cannot be kept to the assistant's tokens; prompt ends {prompt[-40:]!r}, "
            f"conversation has {whole[: len(prompt)][-40:]!r} there; give the model a template "
            "that renders both alike",
        )
    if as_text:
        before = text_ids(words, messages[:-1], row, prompt=True)
        ids = text_ids(words, messages, row)
    else:
        before, ids = rendered_ids(words, [prompt, whole])
    pairs = zip(before, ids, strict=False)
    start = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(before), len(ids)))
    return Turn(ids, start, len(before))


def fit(
    words: Dialect,
    messages: list[Message],
    row: Row,
    as_text: bool,
    turn: Turn,
    max_length: int | None,
    too_long: Clipped,
) -> Sample | None:
    """Bring a turn to at most `max_length` tokens; None where it is dropped.

    Raises:
        RowError: If it is longer and `too_long` is refuse, or if a shorter one cannot be rendered.
    """
    if max_length is None or len(turn.ids) <= max_length:
        return sample_of(turn.ids, turn.start)
    if too_long == "drop":
        return None
    if too_long == "refuse":
        raise RowError(
            "too long",
            f"messages[{len(messages) - 1}] (assistant): with what stands before it "
            f"{len(turn.ids)} tokens, optimisation.max_length={max_length}; raise it, shorten the "
            "row, or set optimisation.too_long to cut or drop",
        )
    shortest = turn
    best: Turn | None = None
    kept = list(_without_oldest(messages))
    # The fewer turns, the fewer tokens: of a hundred, seven are tried and not each.
    low, high = 0, len(kept)
    while low < high:
        middle = (low + high) // 2
        shorter = encode_turn(words, kept[middle], row, as_text)
        if len(shorter.ids) <= max_length:
            best, high = shorter, middle
        else:
            shortest, low = shorter, middle + 1
    if best is not None:
        return sample_of(best.ids, best.start)
    messages = kept[-1] if kept else messages
    fitted = _shorten_question(words, messages, row, as_text, max_length)
    if fitted is None and too_long == "clip":
        answer = shortest.ids[shortest.start :][: max_length // 2]
        prompt = shortest.ids[: shortest.start][len(answer) - max_length :]
        return sample_of([*prompt, *answer], len(prompt))
    return None if fitted is None else sample_of(fitted.ids, fitted.start)


def _without_oldest(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the conversation without its oldest exchange, without its two oldest, ..."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "user" and index > len(system)
    ]
    for start in starts:
        yield [*system, *messages[start:]]


def _shorten_question(
    words: Dialect, messages: list[Message], row: Row, as_text: bool, max_length: int
) -> Turn | None:
    """Cut the question's text from the left as little as needed, or return None."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        return None
    question = messages[users[-1]]["content"]

    def keeping(characters: int) -> Turn:
        text = question[len(question) - characters :]
        shorter = [*messages]
        shorter[users[-1]] = {**messages[users[-1]], "content": text}
        return encode_turn(words, shorter, row, as_text)

    low, high, best = 1, len(question) - 1, None
    while low <= high:
        middle = (low + high) // 2
        turn = keeping(middle)
        if len(turn.ids) > max_length:
            high = middle - 1
        else:
            low = middle + 1
            best = turn if question[len(question) - middle :].strip() else best
    return best


def sample_of(ids: list[int], start: int) -> Sample:
    """Label the ids from `start` on."""
    return {"input_ids": ids, "labels": [IGNORED] * start + ids[start:]}
