"""Rows that the model's chat template or tokenizer cannot take, quarantined one by one."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from requant.collecting.read import Read
from requant.config.training import Optimisation
from requant.data.chat_template import Rules, dialect
from requant.data.faults import Fault
from requant.data.formats import Row
from requant.data.samples import encode_row
from requant.data.turns import TooLong
from requant.errors import ContractError

MOST_MESSAGES = 2000
"""A thousand turns render in a minute, twice as many in four."""


def render_faults(
    tokenizer: Any, rules: Rules, limits: Optimisation | None, reads: Iterable[Read]
) -> Iterator[Read]:
    """Render and encode each good row as training will; quarantine those that fail, one by one.

    Args:
        tokenizer: Of the model that is trained.
        rules: How rows are rendered.
        limits: max_length and too_long of the training; None for rows that are only measured on.
        reads: Rows of a source; bad ones pass as they are.

    Returns:
        The same reads in the same order, the bad rows among them without a row and with the reason.

    Raises:
        ContractError: At a fault that every row would have: the template is to be mended.
    """
    words = dialect(tokenizer, rules)
    length = None if limits is None else limits.max_length
    too_long: TooLong = "cut" if limits is None else limits.too_long
    for read in reads:
        if read.row is None:
            yield read
            continue
        place, counts = f"{read.source}: {read.place}", Counter[str]()
        if (messages := len(read.row.get("messages", ()))) > MOST_MESSAGES:
            yield _bad(
                read,
                f"has {messages} messages; more than {MOST_MESSAGES} take minutes to render, since "
                "each turn is rendered with all before it: split the conversation",
            )
            continue
        try:
            made = encode_row(words, place, read.row, length, too_long, counts)
        except ContractError as error:
            # The tokenizer gave up on this text.
            yield _bad(read, str(error).removeprefix(f"{place}: "))
            continue
        if not isinstance(made, Fault):
            # What is too long for the training is another matter: it may be longer tomorrow.
            lost = made or counts["dropped_samples"] > counts["turns_without_prompt"]
            yield read if lost else _bad(read, f"teaches nothing: {_nothing(read.row)}")
        elif made.of_template:
            raise ContractError(f"{place}: {made.text}")
        else:
            yield _bad(read, made.text)


def _nothing(row: Row) -> str:
    if "text" in row:
        return "its text is a single token; give more of it"
    return (
        "no turn of the assistant with a weight other than 0 stands after another message; give "
        "one a question before it"
    )


def _bad(read: Read, reason: str) -> Read:
    return replace(read, row=None, reason=reason, ignored=(), format="")
