"""Folders that are made once and read by every process that tests."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from requant.store import locked


@dataclass(frozen=True)
class Shared:
    """Where they lie; called for one of them."""

    root: Path

    def __call__(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a folder's path, once it is made: here, or by another process before.

        Args:
            name: Of the folder, and of what it holds.
            make: Makes the folder at the path that it is given.
        """
        folder, done = self.root / name, self.root / f"{name}.done"
        with locked(self.root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder


def shared_root(base: Path) -> Path:
    """Name the folder that all processes of a test run share.

    Args:
        base: This process's own temporary folder.
    """
    # Workers of pytest-xdist have a folder each below that of the run.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return root / "shared"
