"""Conversations through a chat template: by one set of rules, checked, with a frozen clock."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from requant.canonical import canonical_json
from requant.data.artifact import RULES_NAME
from requant.data.formats import Row
from requant.data.messages import Message
from requant.errors import ContractError
from requant.outside.json_text import read_object
from requant.wording import printable, shown

if TYPE_CHECKING:
    from jinja2 import TemplateSyntaxError

DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuV"
"""Directives of strftime that a template may use; `%-d` and its like besides."""


@dataclass(frozen=True)
class Rules:
    """How conversations are rendered, wherever a night renders them."""

    clock: str = "2025-01-01T00:00:00"
    """ISO moment that a template's strftime_now tells."""
    control_tokens: Literal["refuse", "text"] = "refuse"
    """What to do about control tokens spelled in a message's text."""
    end_token: Literal["require", "allow"] = "require"
    """Whether an assistant turn may end without a token that stops the model."""


class RowError(ContractError):
    """A row that cannot be trained on or measured.

    Args:
        kind: What such rows are counted by.
        text: Rule and way out.
        of_template: Every row would fail so: the chat template is to blame.
    """

    def __init__(self, kind: str, text: str, *, of_template: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.of_template = of_template


@dataclass(frozen=True)
class Dialect:
    """What a tokenizer with a chat template makes of conversations, under the rules."""

    tokenizer: Any
    rules: Rules
    special: re.Pattern[str]
    """The tokenizer's special tokens."""
    marks: re.Pattern[str]
    """Other added tokens that the template writes, such as <think>: the assistant's own to say."""
    ends: frozenset[int]
    """Ids that stop generation."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Shape of a conversation -> the parts of it that the template leaves out."""


def write_rules(folder: Path, rules: Rules) -> None:
    """Write the rules into a dataset artifact, and so into the key of all that reads it."""
    (folder / RULES_NAME).write_bytes(canonical_json(asdict(rules)))


def read_rules(data: Path) -> Rules:
    """Read the rules of a dataset artifact; the default ones where it has none."""
    path = data / RULES_NAME
    return Rules(**read_object(path)) if path.exists() else Rules()


def dialect(tokenizer: Any, rules: Rules) -> Dialect:
    """Look up once what every row is checked against."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else "\0".join(template.values())
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    special = {token.content for token in added if token.special}
    marks = {token.content for token in added if token.content in text} - special
    return Dialect(tokenizer, rules, _any_of(special), _any_of(marks), _end_ids(tokenizer))


def render(words: Dialect, messages: Sequence[Message], row: Row, *, prompt: bool = False) -> str:
    """Render a conversation.

    Args:
        words: Tokenizer and rules.
        messages: What is rendered of the row.
        row: Its `tools` are rendered too.
        prompt: Whether the header of the assistant's next turn is put at the end.

    Raises:
        RowError: With the template's own reason, if it refuses the conversation.
    """
    return str(_apply(words, messages, row, tokenize=False, add_generation_prompt=prompt))


def rendered_ids(words: Dialect, texts: Sequence[str]) -> list[list[int]]:
    """Encode rendered conversations: the ids that `apply_chat_template(..., tokenize=True)` gives.

    That function renders and then does this; rendering is half of its time, and the texts are
    there already.
    """
    encoded = words.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(map(int, ids)) for ids in encoded]


def text_ids(
    words: Dialect, messages: Sequence[Message], row: Row, *, prompt: bool = False
) -> list[int]:
    """Encode a conversation with the control tokens that its messages spell as ordinary text.

    Args:
        words: Tokenizer and rules.
        messages: What is rendered of the row.
        row: Its `tools` are rendered too.
        prompt: As `render`.

    Raises:
        RowError: As `render`, or if a control token cannot be written as text.
    """
    ids = _apply(
        words,
        messages,
        row,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=prompt,
        sanitize_control_tokens=True,
    )
    return [int(token) for token in ids]


def ends_turn(words: Dialect, ids: Sequence[int]) -> bool:
    """Tell whether a token that stops generation stands at the end, white space aside."""
    for token in reversed(ids):
        if token in words.ends:
            return True
        if words.tokenizer.decode([token]).strip():
            return False
    return False


def refuse_endless(words: Dialect) -> RowError:
    """The error of a turn after which the model would not stop."""
    tokens = words.tokenizer.convert_ids_to_tokens(sorted(words.ends))
    return RowError(
        "no end token",
        "chat template: the assistant's turn ends without a token that stops the model "
        f"({', '.join(map(repr, tokens)) or 'the model has none'}), so it would never learn to "
        "stop; let the template write it after each answer, name the template's own in "
        "generation_config.json (eos_token_id), or set prepare_data.end_token=allow",
        of_template=True,
    )


def _apply(words: Dialect, messages: Sequence[Message], row: Row, **options: Any) -> Any:
    given = [
        {name: value for name, value in message.items() if name != "weight"} for message in messages
    ]
    from jinja2 import TemplateSyntaxError

    try:
        template = words.tokenizer.get_chat_template(None, row.get("tools"))
    except ValueError as error:
        raise RowError(
            "no chat template",
            "the tokenizer has no chat template, and rows of messages need one; add "
            "chat_template.jinja to the model, or give rows of plain text (column text)",
            of_template=True,
        ) from error
    clock = _frozen_clock(words.rules.clock) if "strftime_now" in template else ""
    try:
        return words.tokenizer.apply_chat_template(
            given, tools=row.get("tools"), chat_template=clock + template, **options
        )
    except TemplateSyntaxError as error:
        raise _uncompiled(words.tokenizer, template, error, clock.count("\n")) from error
    except MemoryError:
        raise
    # A template is a program: it raises what it likes.
    except Exception as error:
        said = printable(error)[:500] or type(error).__name__
        raise RowError(
            "template error", f"chat template: {said}; {_way_out(error, messages)}"
        ) from error


def _uncompiled(
    tokenizer: Any, template: str, error: "TemplateSyntaxError", added: int
) -> RowError:
    """The error of a template that is no Jinja; `added` lines stand before its own."""
    folder = Path(str(tokenizer.name_or_path or ""))
    own = folder / "chat_template.jinja"
    place = str(own) if own.exists() else f"{folder / 'tokenizer_config.json'}, its chat_template"
    number = error.lineno - added
    line = template.split("\n")[number - 1 : number]
    return RowError(
        "template that does not compile",
        f"chat template: {place}, line {number}: {error.message}: {shown(''.join(line))}; mend it "
        "there, in the model that prepare_base.source names",
        of_template=True,
    )


def _way_out(error: Exception, messages: Sequence[Message]) -> str:
    roles = {message["role"] for message in messages}
    if "system" in roles and "system" in str(error).lower():
        return (
            "remove the system messages, or take a base (prepare_base.source) whose template has "
            "a branch for them"
        )
    return "change the row, or mend the template of the model that prepare_base.source names"


def _frozen_clock(clock: str) -> str:
    """Jinja that shadows transformers' strftime_now, which knows no other way to be set."""
    moment = datetime.fromisoformat(clock)
    chain = "".join(
        f" | replace({directive!r}, {moment.strftime(directive)!r})"
        for letter in DIRECTIVES
        for directive in (f"%-{letter}", f"%{letter}")
    )
    # The newline is eaten by trim_blocks, so that the template's own first one stays.
    return f"{{% macro strftime_now(format) %}}{{{{ format{chain} }}}}{{% endmacro %}}\n"


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _end_ids(tokenizer: Any) -> frozenset[int]:
    ends = [tokenizer.eos_token_id]
    folder = str(tokenizer.name_or_path or "")
    path = Path(folder, "generation_config.json")
    if folder and path.exists():
        found = read_object(path).get("eos_token_id")
        ends += found if isinstance(found, list) else [found]
    return frozenset(token for token in ends if token is not None)
