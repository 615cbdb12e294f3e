"""What can go wrong, sorted by the one thing an unattended run must know: is a retry worth it."""

import errno
import re

from requant.wording import bounded

TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH}
)
TRANSIENT_CLASSES = frozenset({"OutOfMemoryError", "TransportError"})
"""Names of torch's and httpx's errors: neither is imported here."""
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP answers of a server that is busy or ill."""


class RequantError(Exception):
    """Base of every error requant raises on purpose; its text is `bounded`, whatever it quotes."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(bounded(part) if isinstance(part, str) else part for part in parts))


class TransientError(RequantError):
    """May pass by itself: I/O, a server that is away, memory another process holds. Retried."""


class TerminalError(RequantError):
    """Would fail again in the same way: configuration, contract, parity. Never retried."""


class ConfigError(TerminalError):
    """The configuration cannot work; the text names field, value and valid values."""


class ContractError(TerminalError):
    """Two artifacts that must fit together do not."""


class ParityError(TerminalError):
    """A hand-over was measured and the figure is over its limit."""


class GateError(TerminalError):
    """A model must not serve; the text says on which figures."""


class ArtifactError(TerminalError):
    """An artifact is missing, or its bytes do not match its manifest."""


class DiskFullError(TerminalError):
    """A disk or a quota is full; the text names it and the way out."""


def named_error(name: str) -> type[RequantError] | None:
    """Return the class of an error that another process told by name; None for one of others."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, RequantError) else None


FULL = re.compile(
    "No space left on device"
    "|database or disk is full"
    "|Not enough disk space"
    r"|inline_container\.cc.*(unexpected pos|file write failed)",
    re.DOTALL,
)
"""The words of the kernel, of SQLite, of datasets, and of torch.save, which says no more of it."""


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or one it came from, says that a disk or a quota is full.

    Libraries in Rust, C++ and SQL have exceptions of their own for it.
    """
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    if FULL.search(str(error)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_disk_full(cause)


def is_transient(error: BaseException) -> bool:
    """Tell whether a retry of the same work may succeed.

    Args:
        error: What the stage raised.

    Returns:
        True for `TransientError`, lost connections, the I/O errors in `TRANSIENT_ERRNOS`, an
        accelerator's out-of-memory, and HTTP errors that pass.
        Everything else is terminal, because an unknown failure repeated all night helps nobody.
    """
    if isinstance(error, RequantError):
        return isinstance(error, TransientError)
    if isinstance(error, (ConnectionError, TimeoutError, InterruptedError)):
        return True
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_ERRNOS
    names = {base.__name__ for base in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    return bool(names & TRANSIENT_CLASSES) or status in TRANSIENT_STATUSES
