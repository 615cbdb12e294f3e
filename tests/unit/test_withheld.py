"""What a piece of work raises and logs holds no secret, and is otherwise what it was."""

import errno
import logging
import traceback

import pytest
import typer

from requant.cli.common import errors
from requant.errors import ConfigError, TerminalError, TransientError
from requant.machine.withheld import withheld
from requant.redaction import redactor

SECRET = "pl4nted-s3cret"
REDACT = redactor([SECRET])


class Odd(ValueError):
    """As of a library whose errors show the request to who asks for their repr."""

    def __repr__(self) -> str:
        return f"Odd(headers={{'Authorization': 'Bearer {SECRET}'}})"


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(Exception) as caught, withheld(REDACT):
        if cause is None:
            raise error
        try:
            raise cause
        except Exception:
            raise error  # noqa: B904
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in said
    assert SECRET.encode().hex() not in said
    return caught.value


def test_an_error_without_a_secret_is_the_same_one() -> None:
    for error in (ValueError("nothing"), ConfigError("a field"), OSError(errno.EIO, "disk")):
        assert raised(error) is error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError(f"got {SECRET}"), ConfigError, r"^got \*\*\*$"),
        (OSError(errno.EIO, SECRET), TransientError, r"^OSError: \[Errno 5\] \*\*\* \(.*py:\d+\)$"),
        (
            RuntimeError(SECRET.encode().hex()),
            TerminalError,
            r"^RuntimeError: \*\*\* \(.*py:\d+\)$",
        ),
    ],
)
def test_an_error_with_one_says_the_same_without_it(
    error: Exception, kind: type[Exception], text: str
) -> None:
    found = raised(error)
    assert type(found) is kind
    with pytest.raises(kind, match=text):
        raise found


def test_a_secret_in_what_an_error_came_from_is_not_printed_either() -> None:
    found = raised(TransientError("401"), cause=ValueError(f"Bearer {SECRET}"))
    assert (type(found), str(found)) == (TransientError, "401")


def test_a_secret_in_the_repr_of_an_error_is_not_shown_either() -> None:
    # Prefect logs errors by their repr.
    assert str(raised(Odd("refused"))).startswith("Odd: refused (")


def test_log_records_of_any_library_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logger = logging.getLogger("some.library")
    with withheld(REDACT):
        logger.debug("headers %r, %d of them", {"token": SECRET}, 1)
        try:
            raise ValueError(SECRET)
        except ValueError:
            logger.exception("it failed")
        logger.info("nothing %s", "here")
    assert caplog.messages == ["headers {'token': '***'}, 1 of them", "it failed", "nothing here"]
    assert "ValueError: ***" in caplog.text
    assert SECRET not in caplog.text
    # What was clean keeps its arguments, for those who count records by them.
    assert caplog.records[2].args == ("here",)
    logger.info("after: %s", SECRET)
    assert SECRET in caplog.text


def test_a_record_that_cannot_be_written_ends_no_work(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The handler of pytest raises what others print.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(caplog.handler, "handleError", lambda record: None)
    logger = logging.getLogger("some.library")
    with withheld(REDACT):
        logger.warning("%d of them", "two")
        logger.warning("%d of them", SECRET)
    assert SECRET not in caplog.text
    assert "%d of them ('***',) (%d format: a real number is required, not str)" in caplog.text


def test_what_nobody_listens_to_is_clean_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    logger = logging.getLogger("some.library")
    monkeypatch.setattr(logger, "handlers", [])
    with withheld(REDACT):
        logger.warning("with %s", SECRET)
    assert capsys.readouterr().err == "with ***\n"


def test_a_command_says_no_secret_of_its_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for error in (ConfigError(f"the hub knows no {SECRET}"), ConnectionError(f"with {SECRET}")):
        with pytest.raises(typer.Exit), errors():
            raise error
    said = capsys.readouterr().err
    assert "the hub knows no ***" in said
    assert "ConnectionError: with ***" in said
