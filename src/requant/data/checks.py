"""What is refused of a row although it can be rendered: control tokens, and text left out."""

import json
from collections.abc import Iterator

from requant.data.chat_template import Dialect, RowError, render
from requant.data.formats import Row, strings
from requant.wording import shown

THOUGHT_ENDS = "</think>"
TEXTS = ("content", "reasoning_content")
"""Fields of a message that a template renders as they are."""


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
            f"{path}: spells the control token {shown(token)}, which the model would read as "
            "control; remove it, or set prepare_data.control_tokens=text",
        )
    for index, message in enumerate(row.get("messages", ())):
        if message["role"] == "assistant" and (own := words.marks.search(message["content"])):
            raise RowError(
                "control token in a text",
                f"messages[{index}].content: says {shown(own[0])} as control, while {path} spells "
                f"{shown(token)} as text; one row cannot have both: remove one of them",
            )
    return True


def check_rendered(words: Dialect, row: Row, whole: str) -> None:
    """Refuse a row of which the template leaves something out.

    Each text must occur in the rendered conversation. As a short one may stand there by chance,
    the conversation's shape is rendered with texts of which each occurs once, too. The reasoning of
    earlier turns is exempt: templates drop it on purpose.

    Args:
        words: Tokenizer and rules.
        row: Of messages.
        whole: The rendered row.

    Raises:
        RowError: Naming the message.
    """
    # Of a tool call both the name and each argument may be missing.
    lost = list(dict.fromkeys(name for name, text in _parts(row) if not _occurs(text, whole)))
    lost = lost or _dropped_by_shape(words, row)
    if lost:
        raise RowError(
            "text the template leaves out",
            f"{', '.join(lost)}: does not occur in what the chat template renders, so the model "
            "would never see it; remove it, or give the model a template with a branch for it",
        )


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
            name: f"part-{index}-{name}-end" if name in TEXTS and value else value
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
            for name in TEXTS
            if whole is not None
            and message.get(name)
            and (name == "content" or index == last)
            and message[name] not in whole
        ]
    return words.dropped[key]
