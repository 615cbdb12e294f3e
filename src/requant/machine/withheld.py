"""Secrets kept out of what leaves a piece of work besides its result: log records and errors."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from requant.errors import RequantError, TerminalError, TransientError, is_transient
from requant.redaction import Redact


@contextmanager
def withheld(redact: Redact) -> Iterator[None]:
    """Hide secrets in what is logged in the block, by any library, and in what it raises.

    An error whose text, causes or notes hold one is raised anew: of the same class where it is one
    of requant's, else as the one that says whether a retry is worth it.

    Args:
        redact: Hides them in a text.
    """
    with _in_logs(redact):
        try:
            yield
        except Exception as error:
            if _is_clean(error, redact):
                raise
            # Of nothing: whoever prints an error prints what it came from.
            raise without_secrets(error, redact) from None


def without_secrets(error: Exception, redact: Redact) -> RequantError:
    """Return an error of requant's that says the same without secrets."""
    text = redact(str(error))
    if isinstance(error, RequantError):
        return type(error)(text)
    kind = TransientError if is_transient(error) else TerminalError
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return kind(f"{type(error).__name__}: {text}{where}")


def _is_clean(error: Exception, redact: Redact) -> bool:
    """Tell whether an error can be printed with its traceback and all it came from."""
    said = "".join(traceback.format_exception(error))
    return redact(said) == said and redact(repr(error)) == repr(error)


@contextmanager
def _in_logs(redact: Redact) -> Iterator[None]:
    def hide(record: logging.LogRecord) -> bool:
        text, trace = _message_of(record), record.exc_text or ""
        if record.exc_info and not trace:
            trace = logging.Formatter().formatException(record.exc_info)
        hidden, hidden_trace = redact(text), redact(trace)
        if (hidden, hidden_trace) != (text, trace):
            # Its arguments and its error hold what was hidden in the texts.
            record.msg, record.args, record.exc_info = hidden, (), None
            record.exc_text = hidden_trace or None
        return True

    # At the handlers: a filter of a logger sees none of the records that come up to it.
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        # The handler would say so itself, with all it was given, and go on.
        return f"{record.msg} {record.args!r} ({error})"
