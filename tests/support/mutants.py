"""Files as an attacker, a cut connection or a careless hand leaves them: mutants of good ones."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**40,
    "",
    "\0",
    "\x1b[2J\x1b]0;title\x07",
    "\ud800",
    "../../../etc/passwd",
    "owner/name",
    "{{ 9 }}",
    "(a+)+$",
    "x" * 20_000,
    [],
    {},
    [[]] * 50,
    [[[[[[[[[[[[1]]]]]]]]]]]],
    {"a": {"b": {"c": [1, "x", None]}}},
    ["x", 1, None],
)
"""Values that are of another type, absurd, or mean something to whom they are passed on."""


@st.composite
def mutated_json(draw: st.DrawFn, document: Any) -> bytes:
    """A JSON text with one to three places changed, or its bytes damaged."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        changed = draw(_changed(changed))
    text = json.dumps(changed).encode()
    return draw(mutated_bytes(text)) if draw(st.integers(0, 3)) == 0 else text


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, flipped, said twice, or with others put in."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.integers(0, 5)):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
        case 2:
            return content[:at] + content[:at] + content[at:]
        case 3:
            return content[:at] + draw(st.binary(max_size=20)) + content[at:]
        case 4:
            letter = draw(st.sampled_from([b"[", b"{", b'"', b"\0", b"9", b"&a *a ", b"\\"]))
            return content[:at] + letter * draw(st.sampled_from([1, 100, 30_000])) + content[at:]
        case _:
            return draw(st.binary(max_size=200))


def _changed(value: Any) -> st.SearchStrategy[Any]:
    """One place below a value replaced, removed or added to."""
    here: list[st.SearchStrategy[Any]] = [st.sampled_from(ODD)]
    if isinstance(value, dict) and value:
        names = st.sampled_from(sorted(value))
        # The places below are as many as they are, the value itself is one.
        below = names.flatmap(lambda name: _put(value[name], lambda new: {**value, name: new}))
        here += [below] * 8
        here.append(names.map(lambda name: {k: v for k, v in value.items() if k != name}))
        here.append(st.sampled_from(ODD).map(lambda odd: {**value, str(odd)[:99]: odd}))
    if isinstance(value, list) and value:
        places = st.integers(0, len(value) - 1)
        below = places.flatmap(
            lambda at: _put(value[at], lambda new: [*value[:at], new, *value[at + 1 :]])
        )
        here += [below] * 8
        here.append(places.map(lambda at: value[:at]))
        here.append(st.just(value * 20))
    return st.one_of(here)


def _put(value: Any, into: Callable[[Any], Any]) -> st.SearchStrategy[Any]:
    return _changed(value).map(into)
