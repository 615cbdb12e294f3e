"""One message of a conversation: its fields checked, tool calls brought into one shape."""

from typing import Any

from requant.errors import ContractError
from requant.outside.json_text import Bounds, MalformedJson, parse_json
from requant.wording import shown

Message = dict[str, Any]
"""`role` and `content`, and of MESSAGE_FIELDS what it has."""

ARGUMENTS = Bounds(size=4 << 20, entries=100_000)
"""JSON that a row holds as text: arguments of a tool call, or the tools it offers."""
ROLES = ("system", "user", "assistant", "tool")
MESSAGE_FIELDS = (
    "role",
    "content",
    "name",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "weight",
)
EXPECTED = (
    'expected [{"role": "system" | "user" | "assistant" | "tool", "content": "text"}, ...] '
    "ending with the assistant"
)


def parse_message(message: Any, at: str) -> tuple[Message, list[str]]:
    """Check a message; return the fields that mean something, and the names of the others.

    Raises:
        ContractError: Naming the field that is not as it should be, by `at`.
    """
    if not isinstance(message, dict) or "role" not in message:
        raise ContractError(f"{at} is {shown(message)}; {EXPECTED}")
    role = message["role"]
    if role not in ROLES:
        raise ContractError(f"{at}.role is {shown(role)}; {EXPECTED}")
    given = {name: value for name, value in message.items() if value is not None}
    clean: Message = {"role": role, "content": given.get("content", "")}
    calls = given.get("tool_calls") or []
    spoken = isinstance(clean["content"], str) and (
        bool(clean["content"].strip()) or role == "tool" or bool(calls)
    )
    if isinstance(clean["content"], list):
        raise ContractError(
            f"{at}.content is {shown(clean['content'])}, a list of parts; expected one text: join "
            "the text of the parts, and leave rows with images or sound out"
        )
    if not spoken or (calls and role != "assistant"):
        found = message.get("content") if not calls else message
        raise ContractError(
            f"{at}.content is {shown(found)}, expected non-empty text (empty only beside the "
            f"tool_calls of an assistant); {EXPECTED}"
        )
    for name in ("name", "reasoning_content", "tool_call_id"):
        if name in given and not isinstance(given[name], str):
            raise ContractError(f"{at}.{name} is {shown(given[name])}; expected text")
        if given.get(name):
            clean[name] = given[name]
    if "reasoning_content" in clean and role != "assistant":
        raise ContractError(f"{at}.reasoning_content: is by {role!r}; only the assistant reasons")
    if calls:
        clean["tool_calls"] = parse_tool_calls(calls, f"{at}.tool_calls")
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ContractError(
            f"{at}.weight is {shown(weight)}; expected 0 (context without loss) or 1"
        )
    if weight == 0 and role == "assistant":
        clean["weight"] = 0
    return clean, [name for name in given if name not in MESSAGE_FIELDS]


def parse_tool_calls(calls: Any, at: str) -> list[Any]:
    """Check tool calls; arguments become an object, which is what chat templates are given.

    Raises:
        ContractError: Naming the call that is none, or whose arguments are not JSON, by `at`.
    """
    if not isinstance(calls, list):
        raise ContractError(f"{at} is {shown(calls)}; expected a list")
    checked = []
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not is_text(function.get("name")):
            raise ContractError(
                f"{at}[{index}] is {shown(call)}; expected "
                '{"function": {"name": "text", "arguments": {...}}}'
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = parse_text(arguments or "{}", f"{at}[{index}].function.arguments")
        called = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        identity = {"id": call["id"]} if is_text(call.get("id")) else {}
        checked.append({"type": "function", **identity, "function": called})
    return checked


def parse_tools(tools: Any, place: str) -> list[Any]:
    """Check the JSON schemas of the functions a row offers, given as a list or as its text.

    Raises:
        ContractError: If they are not JSON, or no list of objects.
    """
    if isinstance(tools, str):
        tools = parse_text(tools, f"{place}: tools") if tools.strip() else []
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ContractError(f"{place}: tools is {shown(tools)}; expected a list of JSON schemas")
    return tools


def parse_text(text: str, at: str) -> Any:
    """Read a text as JSON.

    Raises:
        ContractError: If it is not JSON.
    """
    try:
        return parse_json(text, ARGUMENTS, finite=True)
    except MalformedJson as error:
        raise ContractError(f"{at}: is not JSON ({error}): {shown(text)}") from error


def is_text(value: Any) -> bool:
    """Tell whether a value is a text that holds more than white space."""
    return isinstance(value, str) and bool(value.strip())
