"""A real training that was killed, and lost bytes of its newest checkpoint besides."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from requant.config.training import TrainAdapter
from requant.stages import train_adapter
from requant.store import describe
from tests.stages.conftest import STEPS, KillAtStep5, make_context
from tests.support.chain import child_process

SECTION = TrainAdapter(rank=4, alpha=8, optimisation=STEPS)


def train_until_step_5(context: Any, base: Path, data: Path) -> None:
    context = dataclasses.replace(context, reporter=KillAtStep5())
    train_adapter.execute(SECTION, context, base=base, data=data)


@pytest.fixture(scope="module")
def killed(nf4: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scratch of a training killed at step 5, with checkpoints 2 and 4."""
    context = make_context(tmp_path_factory.mktemp("killed"))
    assert child_process(train_until_step_5, context, nf4, tiny_data) == -signal.SIGKILL
    return context.work


@pytest.fixture(scope="module")
def whole(nf4: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the adapter of a training that nothing disturbed."""
    context = make_context(tmp_path_factory.mktemp("whole"))
    train_adapter.execute(SECTION, context, base=nf4, data=tiny_data)
    return describe(context.out).digest


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json", "scheduler.pt"]
)
def test_a_cut_file_costs_the_steps_since_the_checkpoint_before(
    name: str, killed: Path, whole: str, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    context = make_context(tmp_path)
    shutil.copytree(killed, context.work, dirs_exist_ok=True)
    cut = context.work / "checkpoint-4" / name
    size = cut.stat().st_size
    os.truncate(cut, size // 2)
    train_adapter.execute(SECTION, context, base=nf4, data=tiny_data)
    messages = context.reporter.messages  # type: ignore[attr-defined]
    said = f"checkpoint-4 is damaged ({name} has {size // 2} bytes of {size}): the one before is"
    assert any(text.startswith(said) for text in messages)
    assert "resuming from checkpoint-2" in messages
    assert describe(context.out).digest == whole
