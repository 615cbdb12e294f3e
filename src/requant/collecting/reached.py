"""What fsspec and its file systems raise, sorted by whether it will still be so in an hour."""

from collections.abc import Iterator
from contextlib import contextmanager

from requant.errors import (
    TRANSIENT_STATUSES,
    ConfigError,
    RequantError,
    TransientError,
    is_disk_full,
)
from requant.wording import printable


@contextmanager
def reached(named: str) -> Iterator[None]:
    """Tell what does not exist from what cannot be reached, whatever library says so.

    Args:
        named: Field and address, for the errors.

    Raises:
        ConfigError: If it does not exist, may not be read, or a package is missing.
        TransientError: If it cannot be reached.
    """
    try:
        yield
    except (RequantError, MemoryError):
        raise
    except ImportError as error:
        raise ConfigError(
            f"{named}: needs a package that is not installed ({printable(error)}); install it with "
            "pip where the worker runs"
        ) from error
    except Exception as error:
        if is_disk_full(error):
            raise
        if is_lasting(error):
            raise ConfigError(
                f"{named}: is not there, or may not be read ({reason_of(error)}); correct the "
                "address, or let the worker read it"
            ) from error
        raise TransientError(f"{named}: cannot be reached ({reason_of(error)})") from error


def is_lasting(error: BaseException) -> bool:
    """Tell whether something is not there, or not for us, in contrast to a server that is away."""
    told = error
    if type(error.__cause__).__module__.startswith("aiohttp"):
        # fsspec says of http that there is no such file, whatever went wrong.
        told = error.__cause__ or error
    status = getattr(told, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in TRANSIENT_STATUSES
    return isinstance(told, (FileNotFoundError, NotADirectoryError, PermissionError))


def reason_of(error: BaseException) -> str:
    """Say what went wrong and not where: that is said by who asks."""
    said = getattr(error, "strerror", None) or error.__cause__
    if said is None and isinstance(error, FileNotFoundError):
        return "no such file"
    return printable(" ".join(str(said or error).split()))[:300] or type(error).__name__
