"""A disk that is full, said in the same words whoever meets it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from requant.errors import DiskFullError, is_disk_full
from requant.wording import data_size

WAY_OUT = "Free space (`requant gc --keep N`) and run again"


@contextmanager
def naming_full_disk(what: str, folder: Path, outcome: str) -> Iterator[None]:
    """Let a block fail with the disk's name and the way out where its disk is full.

    Args:
        what: Is done: a stage, or the field that names the folder.
        folder: On the disk.
        outcome: What has come of it then.

    Raises:
        DiskFullError: In place of an error that says, or comes from one that says, that it is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        free = data_size(shutil.disk_usage(folder).free)
        # What follows in a library's text are statements and their parameters.
        reason = str(error).partition("\n")[0]
        raise DiskFullError(
            f"{what}: the disk of {folder} is full ({free} free): {reason}; {outcome}. {WAY_OUT}"
        ) from error
