"""YAML that somebody else wrote, parsed within bounds."""

import re
from typing import Any

import yaml

from requant.wording import printable, shown

MAX_CHARACTERS = 1 << 18
MAX_SCALAR = 10_000
"""Characters of one value: of 1:1:1:... YAML makes a number, in time that grows with its square."""
MAX_DEPTH = 32
"""Lists and mappings inside one another; PyYAML calls itself for each."""

MAX_DIGITS = 1000
"""Digits of a number: more than Python writes down, and each way to read them takes long."""
_LONG_NUMBER = re.compile(
    rf"[-+]?(0x[0-9A-Fa-f_]{{{MAX_DIGITS},}}|0b[01_]{{{MAX_DIGITS},}}|[0-9_:.]{{{MAX_DIGITS},}})"
)

_QUOTED = re.compile(r"'(?!<)[^']{2,}'|\"[^\"]{2,}\"")
"""What PyYAML quotes of a text, besides a single letter and the kind of a token."""


class MalformedYaml(ValueError):
    """A text is not YAML, or more than is read of it; the text says what and where."""


class Function(str):
    """The name of a function that lm-eval would run: `!function module.name`."""


def parse_yaml(text: str, *, functions: bool = False) -> Any:
    """Parse YAML: a key given twice, an alias, and what is nested deeper than any is refused.

    An alias says a part again: nine of nine are a billion entries in a file of one screen.

    Args:
        text: Of a file.
        functions: Take lm-eval's tag `!function` for a `Function`, of which nothing is run.

    Raises:
        MalformedYaml: In one line, with line and column where there are any, and without values: a
            configuration may hold a secret, which YAML takes for an alias or a tag where it begins
            with * or !.
    """
    if len(text) > MAX_CHARACTERS:
        raise MalformedYaml(f"has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    try:
        _check_events(text)
        return yaml.load(text, _WithFunctions if functions else _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" ({error.context})" if error.context else ""
        said = f"{error.problem}{context}"
        cause = said if isinstance(error, _Refusal) else _QUOTED.sub("'...'", said)
        raise MalformedYaml(printable(f"{where}{cause}")) from None
    except (TypeError, LookupError, AttributeError):
        raise MalformedYaml(
            "a value does not fit its tag (!!...); remove the tag, or put the text in quotes"
        ) from None
    # A date of month 13, a letter YAML has not: each its own.
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        said = _QUOTED.sub("'...'", " ".join(str(error).split()))
        raise MalformedYaml(printable(f"{said}; put a text in quotes")) from None


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, "an alias (*name) repeats another part; write it out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            size = len(event.value)
            raise _refused(event, f"a value of {size} characters; at most {MAX_SCALAR} are read")
        if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            said = f"a number of {len(event.value)} characters; numbers that long are not read"
            raise _refused(event, f"{said}, a text of digits is quoted")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _refused(event, f"more than {MAX_DEPTH} levels of lists and mappings")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    return event.style is None and _LONG_NUMBER.fullmatch(event.value) is not None


class _Refusal(yaml.MarkedYAMLError):
    """What PyYAML would take and this module does not."""


def _refused(place: Any, problem: str) -> _Refusal:
    return _Refusal(problem=problem, problem_mark=place.start_mark)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML itself lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a list or mapping cannot be a name")
            if key.value in seen:
                raise _refused(key, f"{shown(key.value)} is given twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _WithFunctions(_UniqueKeys):
    """Knows the names of functions, and imports none."""


def _named(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
    if not isinstance(node, yaml.ScalarNode):
        raise _refused(node, "!function takes a name")
    return Function(loader.construct_scalar(node))


_WithFunctions.add_constructor("!function", _named)


class _Dumper(yaml.SafeDumper):
    """Writes names of functions as they were read."""


_Dumper.add_representer(
    Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)


def dump_yaml(value: Any) -> str:
    """Write what `parse_yaml` read."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
