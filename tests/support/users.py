"""Another user of this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Be a user who owns nothing, and whom nothing above a folder keeps from it."""
    above = [path for path in folder.parents if not path.stat().st_mode & 0o001]
    modes = {path: path.stat().st_mode & 0o7777 for path in above}
    for path, mode in modes.items():
        path.chmod(mode | 0o001)
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        for path, mode in modes.items():
            path.chmod(mode)
