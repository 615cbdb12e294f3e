"""A folder that a command makes: beside its place first, named only when it is whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from requant.errors import ConfigError


def refuse_used(out: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        ConfigError: Naming it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: holds something already; give a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` where the block ends well; else nothing is left.

    Raises:
        ConfigError: If it cannot be made, or somebody else made it meanwhile.
    """
    out = out.resolve()
    with sibling_folder(out) as work:
        draft = work / "unproved"
        draft.mkdir()
        yield draft
        give_name(draft, out)


def give_name(draft: Path, out: Path) -> None:
    """Rename a finished folder.

    Raises:
        ConfigError: If the name was taken meanwhile.
    """
    try:
        if out.exists():
            out.rmdir()
        draft.rename(out)
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
