"""JSON that somebody else wrote, parsed within bounds."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from requant.errors import ArtifactError
from requant.expected import kind_of
from requant.outside.files import read_plain
from requant.wording import printable, shown


@dataclass(frozen=True)
class Bounds:
    """How much JSON may say."""

    size: int
    """Bytes, or characters."""
    depth: int = 64
    """Lists and objects inside one another; what reads them later calls itself as often."""
    entries: int = 1_000_000
    """Values in all: `[],` takes three bytes of a file and a hundred of memory."""


DOCUMENT = Bounds(size=16 << 20)
"""config.json, adapter_config.json and the like. The largest name each module of a large model."""
INDEX = Bounds(size=64 << 20, entries=2_000_000)
"""An index of shards, one entry a tensor."""


STRING_OR_SIGN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
"""One that is never closed ends with the text, so that nothing is read twice."""


SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


TOO_MANY_DIGITS = re.compile(r"integer string conversion: value has (\d+) digits")
"""What Python says of a number that takes it too long; its way out is for programs."""


class MalformedJson(ValueError):
    """A text is not JSON, or says more than its bounds let it; the text says what."""


def parse_json(
    text: str | bytes, bounds: Bounds, *, finite: bool = False, halves: bool = False
) -> Any:
    """Parse JSON: `{"a": 1, "a": 2}`, which readers understand differently, is refused too.

    Args:
        text: UTF-8 where it is bytes.
        bounds: Of the size, the depth and the number of entries.
        finite: Whether NaN and Infinity, which are not JSON but often written, are refused.
        halves: Whether half a surrogate pair, which no file can be written with, is let through:
            who reads rows tells in which field it is.

    Raises:
        MalformedJson: In one line.
    """
    if len(text) > bounds.size:
        raise MalformedJson(f"has {len(text)} bytes, at most {bounds.size} are read")
    try:
        letters = text if isinstance(text, str) else text.decode("utf-8-sig")
        # Before parsing, which calls itself for each level, and makes objects of each entry.
        if letters.count("[") + letters.count("{") > bounds.depth:
            _check_depth(letters, bounds.depth)
        if letters.count(",") > bounds.entries < _separators(letters):
            raise MalformedJson(f"has more than {bounds.entries} entries")
        found = json.loads(
            letters,
            object_pairs_hook=_once,
            parse_constant=_refuse if finite else None,
            parse_float=_finite if finite else None,
        )
        if not halves and SURROGATE.search(letters):
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except MalformedJson:
        raise
    except ValueError as error:
        if digits := TOO_MANY_DIGITS.search(str(error)):
            raise MalformedJson(
                f"a whole number of {digits[1]} digits; numbers that long are not read"
            ) from error
        raise MalformedJson(printable(error)) from error


def read_json(path: Path, bounds: Bounds = DOCUMENT) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: Naming the file, if it is no plain file, not JSON or over its bounds.
    """
    try:
        return parse_json(read_plain(path, bounds.size), bounds)
    except MalformedJson as error:
        raise ArtifactError(f"{printable(path)}: is not JSON: {error}; copy it anew") from error


def read_object(path: Path, bounds: Bounds = DOCUMENT) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: As `read_json`, or if the file holds something else.
    """
    content = read_json(path, bounds)
    if not isinstance(content, dict):
        raise ArtifactError(
            f"{printable(path)}: holds {kind_of(content)}, expected an object "
            '({"name": value, ...}); copy it anew'
        )
    return content


def _check_depth(text: str, limit: int) -> None:
    """Count the levels without parsing; brackets inside of strings are none."""
    depth = 0
    for found in STRING_OR_SIGN.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > limit:
                raise MalformedJson(f"has more than {limit} levels of lists and objects")
        elif found[0] in "]}":
            depth -= 1


def _separators(text: str) -> int:
    """Count the commas outside of strings."""
    return sum(found[0] == "," for found in STRING_OR_SIGN.finditer(text))


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _refuse(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise MalformedJson(f"{shown(twice)} is given twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise MalformedJson(f"{constant} is no number of JSON")
