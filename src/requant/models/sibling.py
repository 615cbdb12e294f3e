"""A folder that is made beside where it will be, and gets its name when it is whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from requant.errors import ConfigError


def check_new(out: Path) -> None:
    """Refuse a place where something lies already.

    Raises:
        ConfigError: Naming it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: holds something already; give a new folder")


def put_in_place(partial: Path, out: Path) -> None:
    """Give a folder its name.

    Raises:
        ConfigError: If something lies there by now.
    """
    try:
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: was made by somebody else meanwhile") from error


@contextmanager
def sibling_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder where `out` will be, and in the end remove it and what held nothing."""
    missing = [folder for folder in out.parents if not folder.exists()]
    # Named before it is made: an interrupt in between would leave it.
    work = out.parent / f".{out.name}-{token_hex(4)}"
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir()
        except (PermissionError, NotADirectoryError, FileExistsError, FileNotFoundError) as error:
            raise ConfigError(
                f"--out {out}: cannot be made: {error.filename}: {error.strerror}"
            ) from error
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
