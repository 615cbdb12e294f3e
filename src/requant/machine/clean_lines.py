"""The lines of a running process without secrets, also of one that goes over the end of a line."""

from collections.abc import Callable, Sequence

from requant.redaction import Redact

MOST_REACHES = 8
"""What is held back at most, in lengths of a secret: one that is said without an end has to go."""


class CleanLines:
    """Says lines once so much follows them that no secret in them can go on.

    What is held back until then is as long as the longest secret may be, which is a few lines.
    """

    def __init__(self, redact: Redact, say: Callable[[str], None]) -> None:
        self._redact = redact
        self._say = say
        self._held: list[str] = []
        self._is_cut = False

    def add(self, line: str) -> None:
        """Take the next line."""
        self._held.append(line)
        count = self._followed()
        first, rest = self._held[:count], self._held[count:]
        if first and (not rest or self._parts(first, rest)):
            self._held = rest
            self._say_all(first)
        elif sum(map(len, self._held)) > MOST_REACHES * self._redact.reach:
            self._held = []
            self._say_all([*first, *rest], cut_after=True)

    def flush(self) -> None:
        """Say all that is held back: nothing follows, or not for some time."""
        held, self._held = self._held, []
        self._say_all(held)

    def _followed(self) -> int:
        """Count the lines that have a secret's length of text after them."""
        after = 0
        for index in reversed(range(len(self._held))):
            if after >= self._redact.reach:
                return index + 1
            after += len(self._held[index])
        return 0

    def _parts(self, first: Sequence[str], rest: Sequence[str]) -> bool:
        """Tell whether no secret goes from the first lines to the others."""
        before, after = "\n".join(first), "\n".join(rest)
        whole = f"{before}\n{after}"
        clean = self._redact(whole)
        return clean in {whole, f"{self._redact(before)}\n{self._redact(after)}"}

    def _say_all(self, lines: Sequence[str], *, cut_after: bool = False) -> None:
        text = "\n".join(lines)
        clean = self._redact(text, cut_before=self._is_cut, cut_after=cut_after)
        self._is_cut = cut_after
        for line in lines if clean == text else clean.split("\n"):
            self._say(line)
