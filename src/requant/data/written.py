r"""Rows that a model writes itself: where its turns begin and end, and which rows are kept.

A model that was tuned on conversations writes the user's turn too, when it is given its chat
template up to where that turn begins (Magpie, Xu et al. 2024, arXiv:2406.08464); then it is given
the rendered question, and answers. A model that only continues text begins with its first token.

    given                                                     it writes
    <|im_start|>user\n                                        How do ships float?<|im_end|>
    <|im_start|>user\nHow ...?<|im_end|>\n<|im_start|>assistant\n  By the water ...<|im_end|>
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from requant.data.chat_template import Dialect, RowError, Rules, render, rendered_ids
from requant.data.checks import check_control
from requant.data.faults import Fault
from requant.data.formats import Row
from requant.data.overlap import normalised
from requant.data.rows import conversation
from requant.data.samples import encode_row
from requant.errors import ContractError
from requant.outside.tokenizer_patterns import naming_patterns
from requant.wording import shown

RULES = Rules(control_tokens="refuse", end_token="allow")
"""Whatever a night's rules are, no row may spell what the model would read as control. Whether its
template ends a turn, the night asks itself."""
USER, ASSISTANT = "Zq7userXv", "Zq7assistantXv"
"""Words that no template writes, in place of a turn's."""
SWITCH = "write_replay.enabled=false"

Say = Callable[[Sequence[Sequence[int]], Sequence[str], frozenset[int]], list[list[int]]]
"""`(prompts, names, ends) -> ids` that the model goes on with: up to the first end, which is the
last id, or as many as it may; what is drawn for a prompt depends on its name."""


@dataclass(frozen=True)
class Turns:
    """What a chat template puts around a question and its answer."""

    opening: str
    """The rendered conversation up to the user's first word."""
    user_ends: frozenset[int]
    answer_ends: frozenset[int]


@dataclass
class Kept:
    """Rows that are kept, and how many are not, by the reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)


def beginning(words: Dialect) -> Turns | int:
    """Find where a model begins: with a turn of its chat template, or a text's first token.

    Raises:
        ContractError: As `turns_of` and `text_start`.
    """
    return turns_of(words) if words.tokenizer.chat_template else text_start(words.tokenizer)


def turns_of(words: Dialect) -> Turns:
    """Find where a template lets the user's words begin, and the tokens that end both turns.

    Raises:
        ContractError: If the template does not render the words as they are, once, or if no token
            of the tokenizer stands behind them: the model would not know where to stop.
    """
    question, answer = conversation(USER, ASSISTANT)["messages"]
    try:
        asked = render(words, [question], {}, prompt=True)
        whole = render(words, [question, answer], {})
    except RowError as error:
        raise _impossible(str(error)) from error
    for text, mark, role in ((asked, USER, "user"), (whole, ASSISTANT, "assistant")):
        if (times := text.count(mark)) != 1:
            raise _impossible(
                f"chat template: renders {mark!r}, said by the {role}, {times} times, and should "
                f"once and as it is: {shown(text)}"
            )
    opening, _, closing = asked.partition(USER)
    user_end = _first_token(words, closing)
    if user_end is None:
        raise _impossible(
            f"chat template: puts {shown(closing)} behind the user's words, which begins with no "
            "token of the tokenizer's own, so nothing ends the user's turn"
        )
    answer_end = _first_token(words, whole.partition(ASSISTANT)[2])
    return Turns(
        # A space before a word is part of the word's token.
        opening=opening.rstrip(" "),
        user_ends=words.ends | {user_end},
        answer_ends=words.ends | ({answer_end} if answer_end is not None else set()),
    )


def text_start(tokenizer: Any) -> int:
    """Return the token that a text begins with.

    Raises:
        ContractError: If the tokenizer has none.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise _impossible(
        "the base has no chat template, and its tokenizer neither bos_token nor eos_token: it "
        "cannot be told to begin a text"
    )


def conversations(
    words: Dialect, turns: Turns, names: Sequence[str], say: Say, left_out: Counter[str]
) -> Iterator[Row]:
    """Let the model write a user's turn for each name, and answer those that can be used.

    Args:
        words: Tokenizer and rules.
        turns: Of its template.
        names: One for each row that is tried; they seed what is drawn.
        say: The model.
        left_out: Is added to.

    Raises:
        ContractError: If the tokenizer gives up.
    """
    opening = _ids(words, turns.opening)
    said = say([opening] * len(names), [f"{name}-user" for name in names], turns.user_ends)
    asked: dict[str, tuple[str, list[int]]] = {}
    for name, ids in zip(names, said, strict=True):
        if (text := _text(words, ids, turns.user_ends, left_out)) is None:
            continue
        question = {"role": "user", "content": text}
        try:
            check_control(words, {"messages": [question]})
            prompt = render(words, [question], {}, prompt=True)
        except RowError as error:
            left_out[error.kind] += 1
            continue
        asked[name] = (text, _ids(words, prompt))
    if not asked:
        return
    prompts = [prompt for _, prompt in asked.values()]
    answers = say(prompts, [f"{name}-assistant" for name in asked], turns.answer_ends)
    for (text, _), ids in zip(asked.values(), answers, strict=True):
        if (answer := _text(words, ids, turns.answer_ends, left_out)) is not None:
            yield conversation(text, answer)


def texts(
    words: Dialect, start: int, names: Sequence[str], say: Say, left_out: Counter[str]
) -> Iterator[Row]:
    """Let the model write a text for each name, from its first token on; as `conversations`."""
    for ids in say([[start]] * len(names), names, words.ends):
        if (text := _text(words, ids, words.ends, left_out)) is not None:
            yield {"text": text}


def keep(words: Dialect, row: Row, kept: Kept) -> None:
    """Keep a row that can be trained on and is new, or count why it is left out.

    Raises:
        ContractError: If the template would refuse every row, or the tokenizer gives up.
    """
    made = encode_row(words, "write_replay", row, None, "cut", Counter())
    if isinstance(made, Fault):
        if made.of_template:
            raise _impossible(made.text)
        kept.left_out[made.kind] += 1
    elif not made:
        kept.left_out["teaches nothing"] += 1
    elif (text := normalised(row)) in kept.seen:
        kept.left_out["duplicate"] += 1
    else:
        kept.seen.add(text)
        kept.rows.append(row)


def _text(
    words: Dialect, ids: Sequence[int], ends: frozenset[int], left_out: Counter[str]
) -> str | None:
    """Decode what the model said up to an end token; None, and counted, where it is no turn."""
    if not ids or ids[-1] not in ends:
        # Learned as it is, it would teach to stop in the middle, or never.
        left_out["no end within max_tokens"] += 1
        return None
    # Control tokens stay in the text, so that what says one is found.
    text = words.tokenizer.decode(
        list(ids[:-1]), skip_special_tokens=False, clean_up_tokenization_spaces=False
    ).strip()
    if not text:
        left_out["empty"] += 1
        return None
    if "\N{REPLACEMENT CHARACTER}" in text:
        left_out["broken character"] += 1
        return None
    return str(text)


def _ids(words: Dialect, text: str) -> list[int]:
    with naming_patterns(words.tokenizer, "write_replay"):
        return rendered_ids(words, [text])[0]


def _first_token(words: Dialect, text: str) -> int | None:
    """Return the control token that a text begins with, white space aside."""
    rest = text.lstrip()
    found = words.special.match(rest) or words.marks.match(rest)
    return int(words.tokenizer.convert_tokens_to_ids(found[0])) if found else None


def _impossible(reason: str) -> ContractError:
    return ContractError(
        f"write_replay: the base cannot write rows itself: {reason}; set {SWITCH} (and "
        "prepare_data.replay.written=0), or take a base (prepare_base.source) that can"
    )
