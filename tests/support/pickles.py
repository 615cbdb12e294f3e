"""A pickle that shows that it was loaded."""

import os
from pathlib import Path
from typing import Any

import pytest


class Bomb:
    """What a pickle of it does when it is loaded: it writes the file that `armed` names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path(os.environ["REQUANT_TEST_MARK"]), "somebody's code ran"))


def armed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that is there once a `Bomb` has been loaded."""
    path = folder / "mark"
    monkeypatch.setenv("REQUANT_TEST_MARK", str(path))
    return path
