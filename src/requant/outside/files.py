"""Files that somebody else wrote: plain ones only, and no larger than their kind ever is."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from requant.errors import ArtifactError
from requant.wording import data_size, printable


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading in bytes; links are followed.

    Raises:
        ArtifactError: If it is missing, unreadable, or a pipe, a device or a folder: reading one
            could wait for ever, or never end.
    """
    try:
        # A pipe would wait here for who writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ArtifactError(
            f"{printable(path)}: cannot be read ({reason}); give a file that can be"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{printable(path)}: is no plain file; give one")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, limit: int) -> bytes:
    """Read a whole file.

    Args:
        path: Plain file, or a link to one.
        limit: Bytes it may have.

    Raises:
        ArtifactError: As `open_plain`, or if it is larger.
    """
    with open_plain(path) as file:
        # One more than the limit: some files say that they have no bytes and go on giving them.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(
            f"{printable(path)}: has more than {data_size(limit)}, more than any file of its kind; "
            "copy it anew"
        )
    return content


def refuse_links_out(folder: Path) -> None:
    """Refuse links of a folder from elsewhere to files outside of it: their content would travel.

    The hub's cache is the exception: snapshots/COMMIT/ links to blobs/ beside snapshots/.

    Raises:
        ArtifactError: Naming the first link and where it leads.
    """
    inside = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        inside.append((folder.resolve().parent.parent / "blobs").resolve())
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(one) for one in inside):
            raise ArtifactError(
                f"{printable(path)}: is a link out of its folder, to {printable(path.resolve())}; "
                "put the file itself there, or give the folder it lies in"
            )
