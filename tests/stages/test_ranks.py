"""Two ranks train to the loss of one: they share the batch."""

from pathlib import Path

import pytest

from requant.config.quantizing import QuantizeBase
from requant.config.training import Optimisation, TrainAdapter
from requant.errors import TransientError
from requant.execution.launcher import Launch, in_own_process
from requant.execution.stage import Stage
from requant.stages import quantize_base, train_adapter
from tests.stages.conftest import SilentReporter, make_context
from tests.support import verb_stage

STEPS = Optimisation(
    max_steps=6, batch_size=4, learning_rate=5e-3, max_length=96, checkpoint_steps=4
)


def losses(stage: Stage, section: object, ranks: int, folder: Path, **inputs: Path) -> list:
    context = make_context(folder)
    launch = Launch(log=folder / "stage.log", ranks=ranks)
    execute = in_own_process(stage, launch) if ranks > 1 else stage.execute
    metrics = execute(section, context, **inputs)
    assert metrics["steps"] == 6
    assert (context.work / "out-of-rank-1").exists() == (ranks > 1)
    assert list(context.out.glob("*.safetensors"))
    assert isinstance(context.reporter, SilentReporter)
    return [values["loss"] for _, values in context.reporter.points if "loss" in values]


def test_a_killed_rank_is_worth_a_retry(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    launch = Launch(log=tmp_path / "stage.log", ranks=2)
    with pytest.raises(TransientError, match=r"a rank lost another one|was killed by SIG"):
        in_own_process(verb_stage.STAGE, launch)(verb_stage.Verb(verb="lose a rank"), context)


def test_two_ranks_train_to_the_loss_of_one(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    nf4 = make_context(tmp_path / "nf4")
    quantize_base.execute(QuantizeBase(method="nf4"), nf4, base=tiny_base)
    section = TrainAdapter(method="lora", rank=4, alpha=8, optimisation=STEPS)
    inputs = {"base": nf4.out, "data": tiny_data}
    one = losses(train_adapter.STAGE, section, 1, tmp_path / "one", **inputs)
    two = losses(train_adapter.STAGE, section, 2, tmp_path / "two", **inputs)
    assert len(one) == len(two) == 6
    assert two == pytest.approx(one, rel=0.01)
    # Not by chance: from step to step they differ by far more.
    assert max(one) - min(one) > 10 * max(abs(a - b) for a, b in zip(one, two, strict=True))
