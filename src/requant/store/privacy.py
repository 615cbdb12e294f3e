"""Folders for their owner only: weights, training data, and databases with secrets lie in them.

The mode of the folder itself keeps everybody else out of all that is below. What is below is closed
too, for the day somebody opens the folder or copies it with its modes: a default ACL (acl(5)) has
the kernel give what is made there the modes 0700 and 0600, whoever makes it. A umask would do that
as well, but also to what a night writes elsewhere: a deployed copy, a cache of the hub that a team
shares.
"""

import errno
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from requant.errors import ConfigError
from requant.wording import printable

PRIVATE = 0o700
OTHERS = 0o077
"""What group and others may do."""
INHERITED = "system.posix_acl_default"
NOT_OURS = "are other users' and stay as they are"
MODELESS = "are open to other users, and their disk keeps no modes"
READ_ONLY = "are open to other users and cannot be closed, the disk is read-only"
WAYS_OUT = {
    NOT_OURS: "take them out or make them yours (chown)",
    MODELESS: "put the state folder on a disk that keeps modes, such as ext4 or xfs",
    READ_ONLY: "close them (chmod -R go=) where it can be written to",
}
"""Why something stays open -> what a person can do."""
NOBODY = 0xFFFFFFFF
OWNER_ONLY = struct.pack("<I" + 3 * "HHI", 2, 1, 7, NOBODY, 4, 0, NOBODY, 32, 0, NOBODY)
"""linux/posix_acl_xattr.h: version 2; user::rwx, group::---, other::---."""


def make_private(folder: Path, field: str) -> list[str]:
    """Make a folder where it is missing, and close it and all in it to everybody but its owner.

    Links are not followed.

    Args:
        folder: Absolute, with links resolved.
        field: That names it, for the texts.

    Returns:
        What a person should know: that it was open, or is another user's.

    Raises:
        ConfigError: If the folder cannot be made.
    """
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be made ({error.strerror}); name a folder that can"
        ) from error
    if found.st_uid != os.geteuid():
        return [
            f"{field}: {folder} belongs to {_name(found.st_uid)}, who can read and change all in "
            "it; give a folder of your own"
        ]
    mode = stat.S_IMODE(found.st_mode)
    was_open = bool(mode & OTHERS) and _shows_files(folder)
    left = close(folder, field)
    if not was_open or _is_open(folder):
        return left
    return [
        f"{field}: {folder} was open to other users of this machine (mode {mode:04o}); it and all "
        "in it is for its owner only now. To let others read a model, deploy it: deploy.action",
        *left,
    ]


def close(folder: Path, field: str) -> list[str]:
    """Take from group and others what they may do with a folder and all in it.

    Returns:
        What could not be closed, in words.
    """
    reasons = ((path, _close_one(path)) for path in _all_below(folder))
    left = [(path, reason) for path, reason in reasons if reason]
    return [
        f"{field}: {len(paths)} of the files and folders in {folder} {reason}, "
        f"{printable(paths[0])} first; {way_out}"
        for reason, way_out in WAYS_OUT.items()
        if (paths := [path for path, found in left if found == reason])
    ]


def open_to_others(path: Path) -> str:
    """Say that a file may be read or written by other users; empty where it may not, or is not."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return ""
    return f"{path} is open to other users (mode {mode:04o})" if mode & OTHERS else ""


def _shows_files(folder: Path) -> bool:
    """Tell whether an open folder leads others to any file: one that was just made does not."""
    for parent, folders, files in os.walk(folder):
        if files:
            return True
        folders[:] = [name for name in folders if _is_open(Path(parent, name))]
    return False


def _is_open(folder: Path) -> bool:
    try:
        return bool(folder.lstat().st_mode & OTHERS)
    except FileNotFoundError:
        return False


def _all_below(folder: Path) -> Iterator[Path]:
    """Yield a folder, and all in it after it: once it is closed nobody else can swap anything."""
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def _close_one(path: Path) -> str:
    """Close one file or folder; return why it stays open, empty where it does not."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return ""
        if mode & OTHERS:
            path.chmod(stat.S_IMODE(mode) & ~OTHERS)
            # Shared folders of other systems take a mode without a word and keep their own.
            if path.lstat().st_mode & OTHERS:
                return MODELESS
        if stat.S_ISDIR(mode):
            _let_inherit(path)
    except FileNotFoundError:
        # A night beside this one takes its scratch away.
        return ""
    except PermissionError:
        return NOT_OURS
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return READ_ONLY
    return ""


def _let_inherit(folder: Path) -> None:
    """Have what will be made in a folder closed from its first moment."""
    try:
        if INHERITED in os.listxattr(folder) and os.getxattr(folder, INHERITED) == OWNER_ONLY:
            return
        os.setxattr(folder, INHERITED, OWNER_ONLY)
    except OSError as error:
        # Without ACLs the folder's mode keeps others out, and the rest is closed after each night;
        # on a disk that is read-only nothing is made.
        if error.errno not in {errno.ENOTSUP, errno.EROFS}:
            raise


def _name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"
