"""Checkpoints of a training: which one is whole, and where to go on."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ArtifactError
from requant.execution.stage import Reporter
from requant.outside.json_text import read_object

if TYPE_CHECKING:
    pass


COMPLETE = "complete"
"""Name of the file that marks a checkpoint as whole and holds its files' sizes in bytes: the
Trainer writes a checkpoint in place."""


def last_checkpoint(work: Path, before: int, reporter: Reporter) -> Path | None:
    """Return the newest whole checkpoint of a step less than `before`, or None.

    The Trainer saves at its last step too, and resumed from there it would take one step more. A
    checkpoint that lost bytes since it was marked is passed over, said and removed, so that the
    mark does not stand beside the files of the next attempt.
    """
    marked = {
        int(path.parent.name.rpartition("-")[2]): path.parent for path in work.glob(f"*/{COMPLETE}")
    }
    for step in sorted((step for step in marked if step < before), reverse=True):
        damage = _damage(marked[step])
        if damage is None:
            return marked[step]
        reporter.message(f"{marked[step].name} is damaged ({damage}): the one before is taken")
        shutil.rmtree(marked[step], ignore_errors=True)
    if marked and min(marked) < before:
        reporter.message("no whole checkpoint is left: training starts anew")
    return None


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, once its files are on the disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {}
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    draft = checkpoint.with_name(f"{checkpoint.name}.{COMPLETE}")
    draft.write_text(json.dumps(sizes))
    draft.replace(checkpoint / COMPLETE)


def _damage(checkpoint: Path) -> str | None:
    """Name the first file that is not as it was when the checkpoint was marked."""
    try:
        sizes = read_object(checkpoint / COMPLETE)
    except ArtifactError:
        return f"its mark {COMPLETE} cannot be read"
    for name, size in sizes.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else 0
        if name != COMPLETE and found != size:
            return f"{name} has {found} bytes of {size}"
    return None
