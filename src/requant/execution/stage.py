"""A stage: a function from folders to a folder, and what it is given besides."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from requant.figures import Wording
from requant.store import Store

Metrics = dict[str, float]


class Reporter(Protocol):
    """Where a running stage tells how it is getting on."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Points of training curves at an optimizer step."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the long work is."""

    def message(self, text: str) -> None:
        """One line for the log."""


@dataclass(frozen=True)
class StageContext:
    """What a stage is given besides its section and its inputs."""

    out: Path
    """Empty folder; what lies in it at the end becomes the artifact."""
    work: Path
    """Scratch that survives a crash and a retry, for resumable checkpoints."""
    seed: int
    device: str
    """cpu or cuda."""
    reporter: Reporter
    store: Store | None = None
    """Where answers of models are kept from night to night; None keeps none."""
    forced: bool = False
    """Do again what is known."""
    line: str = ""
    """Model line of the night."""


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage."""

    name: str
    version: int
    """Raised by hand with every change of the code that changes the bytes of the artifact."""
    kind: str
    """Kind of the artifact: model, adapter, dataset or evaluation."""
    libraries: tuple[str, ...]
    """Distributions whose version decides the bytes of the artifact."""
    execute: Callable[..., Metrics]
    """`(section, context, **folders by input role) -> final figures`."""
    content_digests: Callable[[Any], dict[str, str]] = field(default=lambda section: {})
    """`section -> role -> digest` of content outside the store (files, hub commits)."""
    reads_anew: bool = False
    """What it reads changes by itself: its key holds when the night began, and it is read once a
    night, whatever becomes of what it was read from."""
    data_parallel: bool = False
    """Several ranks can share the work."""
    artifact: str = ""
    """What a person calls the artifact, where the stage's name does not say it: adapter."""
    headline: tuple[Wording, ...] = ()
    """How the figures a person wants first are put; the first wording with all its figures."""
    data_use: str = "training"
    """What a dataset is taken for: training, calibration, heldout or evaluation."""


def empty_folder(folder: Path) -> Path:
    """Make a folder anew: a killed attempt may have left half a model in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
