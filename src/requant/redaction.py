"""Texts without the secrets this process knows, however a program or a library wrote them."""

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

HIDDEN = "***"

SHORTEST = 8
"""Characters of a secret: a shorter one stands in other words by chance."""

_ESCAPE = re.compile(
    rb"%([0-9A-Fa-f]{2})"
    rb"|\\x([0-9A-Fa-f]{2})"
    rb"|\\u([0-9A-Fa-f]{4})"
    rb"|\\([abfnrtv\\'\"/])"
    rb"|&(amp|lt|gt|quot|apos|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});"
)
_UNSEEN = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x20\x7f]+")
"""White space, control characters, and what colours a terminal."""

_LETTERS = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_ENTITIES = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_BASE64_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_INSIDE_LETTER = range(0x80, 0xC0)
"""Bytes of a letter in UTF-8 after its first."""
_LONGEST_ESCAPE = 12
"""Bytes that a cut through an escape may leave before the rest of a secret."""


class Redact(Protocol):
    """A text without secrets; `HIDDEN` stands in their places."""

    @property
    def reach(self) -> int:
        """Characters that a secret takes at most, however it is written; 0 where none is known."""

    def __call__(self, text: str, *, cut_before: bool = False, cut_after: bool = False) -> str:
        """Hide them.

        Args:
            text: Anything that is about to leave the process, whole if possible.
            cut_before: It had a beginning that is gone, where a secret may have begun: as much as
                the longest could leave is hidden too.
            cut_after: Likewise its end.
        """


def redactor(secrets: Iterable[str]) -> Redact:
    """Return a function that hides secrets in a text.

    Found are the values and each line of theirs that has `SHORTEST` characters: as they are, in
    base64 of either alphabet at each of its three alignments, in hexadecimal, and all of these
    with white space in between or escaped as URLs, JSON, Python and HTML do, twice over at most.
    Not found: what was compressed, encrypted, reversed or reckoned with, and a part of a value.

    Args:
        secrets: Their values; those with fewer than `SHORTEST` characters are passed over.
    """
    return _Redactor(_needles(secrets))


def is_short(secret: str) -> bool:
    """Tell whether a secret could not be hidden without ruining texts."""
    return len(_squeezed(secret.encode(errors="surrogatepass"))) < SHORTEST


@dataclass(frozen=True, repr=False)
class _Needles:
    plain: frozenset[bytes]
    base64: frozenset[bytes]
    hexadecimal: frozenset[bytes]
    longest: int


@dataclass(frozen=True, repr=False)
class _Redactor:
    needles: _Needles

    @property
    def reach(self) -> int:
        # The longest is in hexadecimal with colons: three characters a byte. An escape takes six.
        return 2 * self.needles.longest

    def __call__(self, text: str, *, cut_before: bool = False, cut_after: bool = False) -> str:
        if not self.needles.longest:
            return text
        # What cannot be encoded stands for itself: positions must hold.
        content = text.encode(errors="surrogatepass")
        if not (cut_before or cut_after or _is_in(content, self.needles)):
            return text
        spans = _spans(content, self.needles, cut_before=cut_before, cut_after=cut_after)
        return _without(content, spans).decode(errors="surrogatepass")


@dataclass(frozen=True, repr=False)
class _View:
    """A text in another spelling, and where in the text each of its bytes begins and ends."""

    content: bytes
    begins: Sequence[int]
    ends: Sequence[int]


def _needles(secrets: Iterable[str]) -> _Needles:
    values = {
        part.strip()
        for secret in secrets
        for part in (secret, *secret.splitlines())
        if not is_short(part)
    }
    plain, encoded, hexadecimal = set[bytes](), set[bytes](), set[bytes]()
    for value in values:
        content = value.encode(errors="surrogatepass")
        plain |= {
            _squeezed(content),
            # As forms write a blank, and as `ascii` and JSON write letters of other languages.
            _squeezed(content.replace(b" ", b"+")),
            _squeezed(ascii(value)[1:-1].encode()),
            _squeezed(json.dumps(value)[1:-1].encode()),
        }
        encoded |= _base64_cores(content)
        hexadecimal |= {content.hex().encode(), content.hex(":").encode()}
    longest = max(map(len, plain | encoded | hexadecimal), default=0)
    return _Needles(frozenset(plain), frozenset(encoded), frozenset(hexadecimal), longest)


def _base64_cores(content: bytes) -> set[bytes]:
    """Return what of a value's base64 no byte before or after it changes, per alignment.

    A character holds six bits: after one strange byte the first two characters depend on it, after
    two the first three.
    """
    cores = set()
    for before, strange in ((0, 0), (1, 2), (2, 3)):
        whole = (before + len(content)) * 8 // 6
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            cores.add(encode(bytes(before) + content)[strange:whole])
    return cores


def _is_in(content: bytes, needles: _Needles) -> bool:
    """Tell whether `_spans` would find something, in a hundredth of the time."""
    once = _ESCAPE.sub(_meant, content)
    for view in {content, once, _ESCAPE.sub(_meant, once)}:
        squeezed = _squeezed(view)
        if any(map(squeezed.__contains__, needles.plain | needles.base64)):
            return True
        if any(map(squeezed.lower().__contains__, needles.hexadecimal)):
            return True
    return False


def _spans(
    content: bytes, needles: _Needles, *, cut_before: bool, cut_after: bool
) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    raw = _View(content, range(len(content)), range(1, len(content) + 1))
    once = _rewritten(raw, _ESCAPE, _meant)
    twice = _rewritten(once, _ESCAPE, _meant)
    for view in (raw, once, twice):
        squeezed = _rewritten(view, _UNSEEN, lambda match: b"")
        lower = squeezed.content.lower()
        spans += _found(squeezed, squeezed.content, needles.plain)
        spans += _found(squeezed, lower, needles.hexadecimal)
        spans += [
            _with_edges(content, span)
            for span in _found(squeezed, squeezed.content, needles.base64)
        ]
        edge = min(needles.longest + _LONGEST_ESCAPE, len(squeezed.content))
        if edge and cut_before:
            spans.append((0, squeezed.ends[edge - 1]))
        if edge and cut_after:
            spans.append((squeezed.begins[-edge], len(content)))
    return spans


def _found(view: _View, content: bytes, needles: Iterable[bytes]) -> list[tuple[int, int]]:
    spans = []
    for needle in needles:
        at = content.find(needle)
        while at >= 0:
            spans.append((view.begins[at], view.ends[at + len(needle) - 1]))
            at = content.find(needle, at + 1)
    return spans


def _with_edges(content: bytes, span: tuple[int, int]) -> tuple[int, int]:
    """Widen a span to the characters beside it, which hold bits of the secret, and the padding."""
    begin, end = span
    if begin > 0 and content[begin - 1] in _BASE64_BYTES:
        begin -= 1
    if end < len(content) and content[end] in _BASE64_BYTES:
        end += 1
    while end < len(content) and content[end] == ord("="):
        end += 1
    return begin, end


def _rewritten(
    view: _View, pattern: re.Pattern[bytes], meant: Callable[[re.Match[bytes]], bytes]
) -> _View:
    """Replace what a pattern finds; what comes in its place begins and ends where it did."""
    content = bytearray()
    begins: list[int] = []
    ends: list[int] = []
    done = 0
    for match in pattern.finditer(view.content):
        start, stop = match.span()
        content += view.content[done:start]
        begins += view.begins[done:start]
        ends += view.ends[done:start]
        said = meant(match)
        content += said
        begins += [view.begins[start]] * len(said)
        ends += [view.ends[stop - 1]] * len(said)
        done = stop
    if not done:
        return view
    content += view.content[done:]
    begins += view.begins[done:]
    ends += view.ends[done:]
    return _View(bytes(content), begins, ends)


def _meant(escape: "re.Match[bytes]") -> bytes:
    percent, byte, letter, short, entity = escape.groups()
    if code := percent or byte:
        return bytes.fromhex(code.decode())
    if letter:
        return chr(int(letter, 16)).encode(errors="surrogatepass")
    if short:
        return _LETTERS.get(short, short)
    if entity[:1] != b"#":
        return _ENTITIES[entity]
    base = 16 if entity[1:2] in b"xX" else 10
    number = int(entity[2:] if base == 16 else entity[1:], base)
    return chr(number).encode(errors="surrogatepass") if number < 0x110000 else b""


def _squeezed(content: bytes) -> bytes:
    return _UNSEEN.sub(b"", content)


def _without(content: bytes, spans: list[tuple[int, int]]) -> bytes:
    kept: list[bytes] = []
    done = 0
    for begin, end in sorted(_on_letters(content, *span) for span in spans):
        if end <= done:
            continue
        # One that overlaps the last or touches it is of the same piece.
        if begin > done or not kept:
            kept += [content[done:begin], HIDDEN.encode()]
        done = end
    return b"".join([*kept, content[done:]])


def _on_letters(content: bytes, begin: int, end: int) -> tuple[int, int]:
    """Widen a span that begins or ends inside a letter of several bytes."""
    while begin > 0 and content[begin] in _INSIDE_LETTER:
        begin -= 1
    while end < len(content) and content[end] in _INSIDE_LETTER:
        end += 1
    return begin, end
