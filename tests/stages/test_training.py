"""The adapter learns, the continuation resumes where it was killed."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from chain import child_process
from conftest import STEPS, SilentReporter, make_context
from safetensors.torch import load_file

from requant.config.sections import (
    ContinueTrain,
    TrainAdapter,
)
from requant.errors import ContractError, TerminalError
from requant.provenance import read_provenance, weights_digest
from requant.stages import continue_train, train_adapter
from requant.store import describe
from requant.training import check_gradients, last_checkpoint


def test_the_adapter_learns_and_names_no_path(trained) -> None:
    folder, metrics = trained
    assert metrics["loss_last"] < metrics["loss_first"]
    assert metrics["steps"] == 6
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    # peft keeps a set, whose order changes with the process.
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_adapter_records_what_it_was_trained_on(trained, tiny_base: Path, nf4: Path) -> None:
    recorded = read_provenance(trained[0])
    assert recorded == {"original": weights_digest(tiny_base), "trained_on": weights_digest(nf4)}


def test_the_same_seed_gives_the_same_bytes(nf4: Path, tiny_data: Path, tmp_path: Path) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    digests = set()
    for attempt in ("one", "two"):
        context = make_context(tmp_path / attempt)
        train_adapter.execute(section, context, base=nf4, data=tiny_data)
        digests.add(describe(context.out).digest)
    assert len(digests) == 1


def test_an_unknown_target_module_is_refused_before_training(
    nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = TrainAdapter(target_modules=("q_proj", "c_attn"), optimisation=STEPS)
    with pytest.raises(ContractError, match=r"c_attn not in this model.*down_proj"):
        train_adapter.execute(section, make_context(tmp_path), base=nf4, data=tiny_data)


def test_a_tensor_without_gradient_is_refused() -> None:
    with_gradient = torch.nn.Parameter(torch.ones(2))
    with_gradient.grad = torch.ones(2)
    with pytest.raises(TerminalError, match=r"1 of 2 trainable tensors have none, e.g. b"):
        check_gradients({"a": with_gradient, "b": torch.nn.Parameter(torch.ones(2))})
    with_gradient.grad = torch.zeros(2)
    check_gradients({"x.lora_A.default": with_gradient})
    with pytest.raises(TerminalError, match=r"exactly zero in 1 lora_B tensors, e.g. x.lora_B"):
        check_gradients({"x.lora_B.default": with_gradient})
    with_gradient.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(TerminalError, match="not finite in 1 of 1 tensors"):
        check_gradients({"a": with_gradient})


def test_only_the_top_layers_move(tiny_base: Path, tiny_data: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    section = ContinueTrain(scope="top_layers", layers=1, optimisation=STEPS)
    continue_train.execute(section, context, model=tiny_base, data=tiny_data)
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(context.out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_more_layers_than_there_are_is_refused(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = ContinueTrain(scope="top_layers", layers=5, optimisation=STEPS)
    with pytest.raises(ContractError, match="layers: got 5, the model has 2 blocks"):
        continue_train.execute(section, make_context(tmp_path), model=tiny_base, data=tiny_data)


class KillAtStep5(SilentReporter):
    def progress(self, done: int, total: int, unit: str) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def continue_until_step_5(section: ContinueTrain, context, model: Path, data: Path) -> None:
    context = dataclasses.replace(context, reporter=KillAtStep5())
    continue_train.execute(section, context, model=model, data=data)


def test_a_killed_continuation_resumes_and_ends_with_the_same_bytes(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = ContinueTrain(optimisation=STEPS)
    whole, killed = make_context(tmp_path / "whole"), make_context(tmp_path / "killed")
    continue_train.execute(section, whole, model=tiny_base, data=tiny_data)

    code = child_process(continue_until_step_5, section, killed, tiny_base, tiny_data)
    assert code == -signal.SIGKILL
    assert last_checkpoint(killed.work, before=6).name == "checkpoint-4"
    assert last_checkpoint(killed.work, before=4).name == "checkpoint-2"
    # What a kill in the middle of writing a checkpoint leaves.
    (killed.work / "checkpoint-9").mkdir()
    continue_train.execute(section, killed, model=tiny_base, data=tiny_data)
    assert "resuming from checkpoint-4" in killed.reporter.messages
    assert [step for step, _ in killed.reporter.points] == [1, 2, 3, 4, 5, 6]
    assert describe(killed.out).digest == describe(whole.out).digest
