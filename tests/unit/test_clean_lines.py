"""A secret is hidden where it goes over the end of a line, and nothing else is lost or late."""

import base64

import pytest

from requant.machine.clean_lines import MOST_REACHES, CleanLines
from requant.redaction import redactor

SECRET = "pl4nted-s3cret-of-a-stage"
WORDS = [f"line {number} of a log" for number in range(40)]


def said(lines: list[str], secrets: list[str] | None = None) -> list[str]:
    heard: list[str] = []
    clean = CleanLines(redactor([SECRET] if secrets is None else secrets), heard.append)
    for line in lines:
        clean.add(line)
    clean.flush()
    return heard


@pytest.mark.parametrize("width", [1, 3, 9])
def test_a_secret_in_lines_is_one_word(width: int) -> None:
    lines = [SECRET[at : at + width] for at in range(0, len(SECRET), width)]
    assert said([*WORDS, *lines, *WORDS]) == [*WORDS, "***", *WORDS]
    encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    heard = said([*WORDS, *lines, *WORDS])
    assert "***" in "".join(heard)
    assert "".join(heard).count("of a log") == 80
    # What stands before it is left, and a character of its end that holds two bits of it.
    rest = "".join(heard[len(WORDS) : -len(WORDS)]).replace("***", "")
    assert set(rest) <= set("bWU6Q=")


def test_what_holds_no_secret_is_said_as_it_was() -> None:
    assert said([*WORDS, "", "two\nin one"]) == [*WORDS, "", "two\nin one"]
    assert said(WORDS, []) == WORDS


def test_a_line_waits_for_no_more_than_a_secret_takes() -> None:
    heard: list[str] = []
    redact = redactor([SECRET])
    clean = CleanLines(redact, heard.append)
    clean.add("first")
    assert heard == []
    clean.add("x" * (redact.reach - 1))
    assert heard == []
    clean.add("y")
    assert heard == ["first"]
    at_once: list[str] = []
    CleanLines(redactor([]), at_once.append).add("first")
    assert at_once == ["first"]


def test_one_without_an_end_is_not_held_for_ever() -> None:
    heard: list[str] = []
    redact = redactor([SECRET])
    clean = CleanLines(redact, heard.append)
    clean.add(SECRET[:9])
    for _ in range(400):
        clean.add(f"{SECRET[9:]} {SECRET[:9]}")
    assert heard
    assert sum(map(len, clean._held)) <= MOST_REACHES * redact.reach
    clean.add(SECRET[9:])
    clean.flush()
    text = "\n".join(heard)
    assert not any(SECRET[at : at + 5] in text for at in range(len(SECRET) - 4))
