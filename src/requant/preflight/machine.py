"""Has the machine what the night needs: a GPU, a folder to write to, disk, the deploy program?"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from requant.config import Config
from requant.config.base import FolderBase
from requant.config.operations import CommandAction, CopyAction, no_program
from requant.errors import ArtifactError
from requant.models.device import resolve_device
from requant.models.headers import weight_files
from requant.preflight.problem import Problem
from requant.store import Store
from requant.store.pins import POSTS, holder
from requant.wording import data_size


def machine_problems(config: Config) -> Iterator[Problem]:
    """Check device, state folder, what it pins, disk and what deploys."""
    if config.runtime.device == "cuda":
        resolve_device("cuda")
    yield from _writable("state", config.state)
    action = config.deploy.action
    if isinstance(action, CopyAction):
        yield from _writable("deploy.action.folder", action.folder)
    if isinstance(action, CommandAction) and shutil.which(action.argv[0]) is None:
        yield Problem("deploy.action.argv", no_program(action.argv))
    yield from _pins(config)
    yield from _disk(config)


def _pins(config: Config) -> Iterator[Problem]:
    """Read the pins of the models that tonight's is held against."""
    if not config.evaluate.enabled:
        return
    for post in POSTS:
        try:
            holder(Store(config.state.resolve()), config.name, post)
        except ArtifactError as error:
            yield Problem("state", str(error))


def _writable(field: str, folder: Path) -> Iterator[Problem]:
    there = _existing(folder)
    if not there.is_dir():
        yield Problem(field, f"{there} is a file; give the path of a folder")
    elif not os.access(there, os.W_OK):
        yield Problem(field, f"{there} cannot be written to; give another folder, or its rights")


def _disk(config: Config) -> Iterator[Problem]:
    """Compare free disk with what a first night of a local base writes.

    The base of B bytes is copied (B); quantized to 4 bits about B / 3, to 8 bits B / 2; merged and
    continued models are B each; a full continued training keeps a checkpoint of float32 weights
    and two moments, 6 B. A line that has run before keeps most of it: then nothing is said.
    """
    source = config.prepare_base.source
    started = (config.state / "actions").is_dir()
    if started or not isinstance(source, FolderBase) or not source.path.is_dir():
        return
    size = sum(path.stat().st_size for path in weight_files(source.path))
    further = config.continue_train
    parts = {
        "base": size,
        "quantized base": config.quantize_base.enabled and size // 2,
        "merged": config.merge_fp16.enabled and size,
        "continued": further.enabled and size,
        "checkpoint": further.enabled and further.scope == "full" and 6 * size,
        "4-bit model": config.runs(config.ships) and size // 3,
    }
    needed = sum(parts.values())
    free = shutil.disk_usage(_existing(config.state)).free
    if needed > free:
        shares = ", ".join(f"{name} {data_size(part)}" for name, part in parts.items() if part)
        yield Problem(
            "state",
            f"{config.state} has {data_size(free)} free, a first night writes about "
            f"{data_size(needed)} ({shares}); free some, or give a folder on a larger disk",
        )


def _existing(path: Path) -> Path:
    """Return the path itself or the nearest thing above it that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())
