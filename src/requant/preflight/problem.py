"""One reason why a night cannot end well."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A configuration field, and what is wrong with it: value, what was expected, the way out."""

    field: str
    """Empty where the text names it."""
    text: str
    may_pass: bool = False
    """By itself: a server that is away."""

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text
