"""A secret is found however a program wrote it, and the rest of a text stays as it is."""

import base64
import html
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requant.credentials import secret_parts
from requant.redaction import HIDDEN, SHORTEST, is_short, redactor

SECRET = "pA5s+w0rd/é&<'\"\\ of\ttonight"


def percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 without padding": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64 after one byte": lambda text: base64.b64encode(b"u" + text.encode()).decode(),
    "base64 after two bytes": lambda text: base64.b64encode(b"u:" + text.encode() + b"\n").decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(b"?" + text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(b"x" * 50 + text.encode()).decode(),
    "base64 in lines, as Python writes it": lambda text: repr(
        base64.encodebytes(b"x" * 50 + text.encode())
    ),
    "hexadecimal": lambda text: text.encode().hex(),
    "HEXADECIMAL": lambda text: text.encode().hex().upper(),
    "hexadecimal with colons": lambda text: text.encode().hex(":"),
    "hexadecimal with blanks": lambda text: text.encode().hex(" "),
    "a URL": lambda text: quote(text, safe=""),
    "a path": quote,
    "a form": quote_plus,
    "a URL, every letter": percent,
    "a URL in a URL": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": json.dumps,
    "JSON of letters": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text, ensure_ascii=False)),
    "Python": repr,
    "Python's ASCII": ascii,
    "Python's bytes": lambda text: repr(text.encode()),
    "HTML": html.escape,
    "lines": "\n".join,
    "narrow lines": lambda text: "\n    ".join(textwrap.wrap(text, 5)),
    "a column": "\r\n\t".join,
    "colours": lambda text: f"{text[:4]}\x1b[31m{text[4:9]}\x1b[0m{text[9:]}",
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("secret", [SECRET, "sup3r-S3cret", "aGVsbG8gd29ybGQ"])
def test_a_secret_is_hidden_in_every_spelling(secret: str, name: str) -> None:
    written = ENCODINGS[name](secret)
    redact = redactor([secret])
    # Besides quotes there may be left what stood before the secret: u, u:, ? and x in base64.
    assert set(redact(written)) <= set(f"{HIDDEN}b\"'\\n=\neHh4dPTKCg")
    around = redact(f"it said: {written} and ended")
    assert around.startswith("it said: ")
    assert around.endswith(" and ended")
    assert HIDDEN in around
    assert redactor(["another-secret"])(written) == written


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=8, max_size=40), TEXTS, TEXTS)
def test_any_secret_is_hidden_and_any_text_survives(secret: str, before: str, after: str) -> None:
    if is_short(secret):
        return
    redact = redactor([secret])
    for name in ("as it is", "base64 after one byte", "HEXADECIMAL", "a URL", "JSON"):
        assert HIDDEN in redact(f"{before}{ENCODINGS[name](secret)}{after}"), name
    assert redactor(["not in any of them"])(before) == before


def test_one_secret_that_begins_another_leaves_nothing_of_it() -> None:
    redact = redactor(["12345678", "1234567890abcdef", "0abcdefgh"])
    assert redact("a 1234567890abcdefgh b") == f"a {HIDDEN} b"


def test_every_line_of_a_secret_is_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\nAASC\n-----END KEY-----\n"
    redact = redactor([key])
    assert redact("line 2 is kqhkiG9w0BAQEF.") == f"line 2 is {HIDDEN}."
    assert redact(f"key: {key!r}") == f"key: '{HIDDEN}\\n'"
    assert redact("AASC is too short to be one") == "AASC is too short to be one"


def test_what_a_cut_leaves_of_a_secret_is_hidden() -> None:
    secret = "abcdefghijklmnop"
    redact = redactor([secret])
    text = f"{secret[6:]} then {'words ' * 60}{secret[:9]}"
    assert secret[6:] in redact(text)
    cut = redact(text, cut_before=True, cut_after=True)
    assert cut.startswith(HIDDEN)
    assert cut.endswith(HIDDEN)
    assert "words words" in cut
    assert not any(secret[i : i + 4] in cut for i in range(len(secret) - 4))
    # In base64 and hexadecimal a rest is longer than the value.
    rest = secret.encode().hex()[1:]
    assert rest[-8:] not in redact(f"{rest} {'words ' * 20}", cut_before=True)
    assert redact("é" * 40, cut_before=True, cut_after=True).strip("é") == HIDDEN


def test_a_short_secret_would_ruin_texts() -> None:
    for short in ("", " ", "a", "abc", "a b c d e f g", "\n1234567\n"):
        assert is_short(short)
        assert redactor([short])("abc a 1234567") == "abc a 1234567"
    assert not is_short("x" * SHORTEST)


def test_the_parts_of_an_address_give_it_away() -> None:
    redact = redactor(
        secret_parts("https://hooks.example/services/T0000/B1111%2FXX?key=Zm9vYmFyMQ")
    )
    assert redact("POST https://hooks.example/services/T0000/B1111%2FXX?key=Zm9vYmFyMQ") == (
        f"POST {HIDDEN}"
    )
    assert redact("no route for /services/T0000/B1111%2FXX") == f"no route for {HIDDEN}"
    assert redact("key 'Zm9vYmFyMQ' is not known here") == f"key '{HIDDEN}' is not known here"
    assert redact("hooks.example is away") == "hooks.example is away"
    driver = (
        "mssql+pyodbc:///?odbc_connect=Server%3Ddb.example%3BUID%3Dme%3BPWD%3Dhunter2%2Bhunter2"
    )
    redact = redactor(secret_parts(driver))
    assert redact("login failed: PWD=hunter2+hunter2") == f"login failed: PWD={HIDDEN}"
    assert secret_parts("sqlite:////state/rows.db") == ("sqlite:////state/rows.db", "")
    assert redactor(secret_parts("me:hunter2hunter2"))("as hunter2hunter2") == f"as {HIDDEN}"


def test_nothing_shows_what_a_redactor_looks_for() -> None:
    redact = redactor([SECRET])
    cells = getattr(redact, "__closure__", ()) or ()
    assert not any("w0rd" in repr(cell.cell_contents) for cell in cells)
