"""Tiny real artifacts, made once a session by the real stages."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from requant.config.base import PrepareBase
from requant.config.data import PrepareData
from requant.config.quantizing import QuantizeBase
from requant.config.training import Optimisation, TrainAdapter
from requant.execution.stage import StageContext
from tests.support.shared import Shared

MICRO_BASE = {
    "source": {
        "kind": "stdlib",
        "vocab_size": 1024,
        "hidden_size": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "intermediate_size": 128,
        "steps": 40,
        "batch_size": 8,
        "sequence_length": 128,
    }
}
MICRO_DATA = {"source": {"kind": "stdlib"}, "max_rows": 64, "max_evaluation_rows": 12}
STEPS = Optimisation(
    max_steps=6, batch_size=4, learning_rate=5e-3, max_length=96, checkpoint_steps=2
)


Trained = tuple[Path, dict[str, float]]
"""Folder of an adapter, and the figures of its training."""


@dataclass(frozen=True)
class SilentReporter:
    """Remembers what it was told."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    steps: list[tuple[int, int, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def progress(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))

    def message(self, text: str) -> None:
        self.messages.append(text)


class KillAtStep5(SilentReporter):
    """Ends its process in the middle of a training."""

    def progress(self, done: int, total: int, unit: str) -> None:
        if (done, unit) == (5, "steps"):
            os.kill(os.getpid(), signal.SIGKILL)


def make_context(folder: Path, seed: int = 0, device: str = "cpu") -> StageContext:
    """A context with empty `out` and `work` below `folder`, and a `SilentReporter`."""
    out, work = folder / "out", folder / "work"
    out.mkdir(parents=True)
    work.mkdir(parents=True)
    return StageContext(out=out, work=work, seed=seed, device=device, reporter=SilentReporter())


@pytest.fixture(scope="session")
def tiny_base(shared: Shared) -> Path:
    """Folder of a Qwen3 model of 0.2 million parameters in bfloat16, trained for 40 steps."""

    def make(folder: Path) -> None:
        from requant.stages import prepare_base

        prepare_base.execute(PrepareBase.model_validate(MICRO_BASE), make_context(folder))

    return shared("tiny_base", make) / "out"


@pytest.fixture(scope="session")
def tiny_data(shared: Shared) -> Path:
    """Folder of a dataset artifact: 64 training rows, three tasks of 12 documents."""

    def make(folder: Path) -> None:
        from requant.stages import prepare_data

        prepare_data.execute(PrepareData.model_validate(MICRO_DATA), make_context(folder))

    return shared("tiny_data", make) / "out"


@pytest.fixture(scope="session")
def nf4(tiny_base: Path, shared: Shared) -> Path:
    """Folder of `tiny_base` quantized to NF4."""

    def make(folder: Path) -> None:
        from requant.stages import quantize_base

        section = QuantizeBase(method="nf4")
        quantize_base.execute(section, make_context(folder), base=tiny_base)

    return shared("nf4", make) / "out"


@pytest.fixture(scope="session")
def lora(nf4: Path, tiny_data: Path, shared: Shared) -> Trained:
    return shared_training("lora", nf4, tiny_data, shared)


@pytest.fixture(scope="session")
def dora(nf4: Path, tiny_data: Path, shared: Shared) -> Trained:
    return shared_training("dora", nf4, tiny_data, shared)


@pytest.fixture(params=["lora", "dora"])
def trained(request: pytest.FixtureRequest) -> Trained:
    return request.getfixturevalue(request.param)


def shared_training(method: str, nf4: Path, tiny_data: Path, shared: Shared) -> Trained:
    """Train an adapter once for all test processes."""

    def make(folder: Path) -> None:
        folder.mkdir()
        _, metrics = train(method, nf4, tiny_data, folder)
        (folder / "metrics.json").write_text(json.dumps(metrics))

    folder = shared(method, make)
    return folder / "out", json.loads((folder / "metrics.json").read_text())


def train(method: str, nf4: Path, tiny_data: Path, folder: Path) -> Trained:
    """Train an adapter on `nf4`; return its folder and the figures of its training."""
    from requant.stages import train_adapter

    # The rows of one batch: every step sees the same text, so what it learns shows in the loss.
    lines = (tiny_data / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[: STEPS.batch_size]))
    context = make_context(folder)
    section = TrainAdapter(method=method, rank=4, alpha=8, optimisation=STEPS)
    metrics = train_adapter.execute(section, context, base=nf4, data=folder)
    return context.out, metrics
