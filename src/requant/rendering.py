"""Conversations through a chat template: by one set of rules, checked, with a frozen clock."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from requant.canonical import canonical_json
from requant.errors import ContractError
from requant.json_file import read_object
from requant.row_formats import Message, Row, strings

RULES_NAME = "template.json"
"""File of a dataset artifact that holds the rules."""
DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuV"
"""Of strftime; `%-d` and its like besides."""
THOUGHT_ENDS = "</think>"


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
    """A row that cannot be trained on or measured; `kind` is what such rows are counted by."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


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


def token_ids(
    words: Dialect,
    messages: Sequence[Message],
    row: Row,
    *,
    prompt: bool = False,
    as_text: bool = False,
) -> list[int]:
    """Encode a conversation: the ids that `apply_chat_template(..., tokenize=True)` gives.

    Args:
        words: Tokenizer and rules.
        messages: What is rendered of the row.
        row: Its `tools` are rendered too.
        prompt: As `render`.
        as_text: Encode control tokens that messages spell as ordinary text.

    Raises:
        RowError: As `render`, or if a control token cannot be written as text.
    """
    options = {"sanitize_control_tokens": True} if as_text else {}
    ids = _apply(
        words,
        messages,
        row,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=prompt,
        **options,
    )
    return [int(token) for token in ids]


def check_control(words: Dialect, row: Row) -> bool:
    """Tell whether a row spells control tokens that are to be encoded as text.

    A special token counts anywhere; another added token that the template writes, such as
    <tool_call>, only where it is not the assistant who says it.

    Raises:
        RowError: Naming the field and the token, if the rules refuse them.
    """
    found = next(_control(words, row), None)
    if found is None:
        return False
    path, token = found
    if words.rules.control_tokens == "refuse":
        raise RowError(
            "control token in a text",
            f"{path}: spells the control token {token!r}, which the model would read as control; "
            "remove it, or set prepare_data.control_tokens=text",
        )
    for index, message in enumerate(row.get("messages", ())):
        if message["role"] == "assistant" and (own := words.marks.search(message["content"])):
            raise RowError(
                "control token in a text",
                f"messages[{index}].content: says {own[0]!r} as control, while {path} spells "
                f"{token!r} as text; one row cannot have both: remove one of them",
            )
    return True


def check_rendered(words: Dialect, row: Row) -> None:
    """Refuse a row of which the template leaves something out.

    Each text must occur in the rendered conversation. As a short one may stand there by chance,
    the conversation's shape is rendered with texts of which each occurs once, too. The reasoning of
    earlier turns is exempt: templates drop it on purpose.

    Raises:
        RowError: Naming the message.
    """
    messages = row["messages"]
    whole = render(words, messages, row)
    lost = [name for name, text in _parts(row) if not _occurs(text, whole)]
    lost = lost or _dropped_by_shape(words, row)
    if lost:
        raise RowError(
            "text the template leaves out",
            f"{', '.join(lost)}: does not occur in what the chat template renders, so the model "
            "would never see it; remove it, or give the model a template with a branch for it",
        )


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
    )


def _apply(words: Dialect, messages: Sequence[Message], row: Row, **options: Any) -> Any:
    given = [
        {name: value for name, value in message.items() if name != "weight"} for message in messages
    ]
    try:
        template = words.tokenizer.get_chat_template(None, row.get("tools"))
    except ValueError as error:
        raise RowError(
            "no chat template",
            "the tokenizer has no chat template, and rows of messages need one; add "
            "chat_template.jinja to the model, or give rows of plain text (column text)",
        ) from error
    if "strftime_now" in template:
        template = _frozen_clock(words.rules.clock) + template
    try:
        return words.tokenizer.apply_chat_template(
            given, tools=row.get("tools"), chat_template=template, **options
        )
    # A template is a program: it raises what it likes.
    except Exception as error:
        raise RowError("template error", f"chat template: {error}") from error


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


def _control(words: Dialect, row: Row) -> Iterator[tuple[str, str]]:
    if "text" in row:
        yield from ((("text", found[0])) for found in words.special.finditer(row["text"]))
    for index, message in enumerate(row.get("messages", ())):
        own = message["role"] == "assistant"
        for path, text in strings(message, f"messages[{index}]"):
            found = words.special.search(text) or (None if own else words.marks.search(text))
            if found:
                yield path, found[0]
    for path, text in strings(row.get("tools", []), "tools"):
        if found := words.special.search(text) or words.marks.search(text):
            yield path, found[0]


def _parts(row: Row) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of everything that must occur in the rendered conversation."""
    last = len(row["messages"]) - 1
    for index, message in enumerate(row["messages"]):
        name, content = f"messages[{index}]", message["content"]
        if message["role"] == "assistant" and index < last:
            content = content.rpartition(THOUGHT_ENDS)[2]
        pieces = content.split(THOUGHT_ENDS) if message["role"] == "assistant" else [content]
        yield from ((f"{name} ({message['role']})", piece) for piece in pieces)
        if index == last:
            yield f"{name}.reasoning_content", message.get("reasoning_content", "")
        for call in message.get("tool_calls", ()):
            yield f"{name}.tool_calls ({call['function']['name']})", call["function"]["name"]
            for _, text in strings(call["function"]["arguments"]):
                yield f"{name}.tool_calls ({call['function']['name']})", text
    for index, tool in enumerate(row.get("tools", ())):
        yield f"tools[{index}]", str(tool.get("function", tool).get("name", ""))


def _occurs(text: str, rendered: str) -> bool:
    wanted = text.strip()
    # A template may put a result of a tool, or the arguments of a call, into JSON.
    return (
        wanted in rendered
        or json.dumps(wanted, ensure_ascii=False)[1:-1] in rendered
        or json.dumps(wanted)[1:-1] in rendered
        or " ".join(wanted.split()) in " ".join(rendered.split())
    )


def _dropped_by_shape(words: Dialect, row: Row) -> list[str]:
    messages = row["messages"]
    filled = [
        {
            name: f"part-{index}-{name}-end" if name in _TEXTS and value else value
            for name, value in message.items()
        }
        for index, message in enumerate(messages)
    ]
    key = json.dumps(
        [
            [(name, bool(message[name])) for name in message] + [message["role"]]
            for message in filled
        ]
        + [bool(row.get("tools"))]
    )
    if key not in words.dropped:
        try:
            whole = render(words, filled, row)
        except RowError:
            # A template that reads its messages' text may refuse this one; the row itself it took.
            whole = None
        last = len(filled) - 1
        words.dropped[key] = [
            f"messages[{index}].{name} ({message['role']})"
            for index, message in enumerate(filled)
            for name in _TEXTS
            if whole is not None
            and message.get(name)
            and (name == "content" or index == last)
            and message[name] not in whole
        ]
    return words.dropped[key]


_TEXTS = ("content", "reasoning_content")


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
