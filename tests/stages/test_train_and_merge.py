"""The adapter learns, the merge reproduces it, the continuation resumes where it was killed."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from chain import child_process
from conftest import SilentReporter, make_context
from safetensors.torch import load_file, save_file

from requant.config.sections import (
    ContinueTrain,
    MergeFp16,
    Optimisation,
    QuantizeBase,
    TrainAdapter,
)
from requant.errors import ContractError, ParityError, TerminalError
from requant.models import load_model
from requant.stages import continue_train, merge_fp16, quantize_base, train_adapter
from requant.store import describe
from requant.training import check_gradients, last_checkpoint

STEPS = Optimisation(
    max_steps=6, batch_size=4, learning_rate=5e-3, max_length=96, checkpoint_steps=2
)
MERGE = MergeFp16(parity_rows=4, trained_max_kl=0.5)


@pytest.fixture(scope="module")
def nf4(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = make_context(tmp_path_factory.mktemp("nf4"))
    quantize_base.execute(QuantizeBase(method="nf4"), context, base=tiny_base)
    return context.out


@pytest.fixture(scope="module", params=["lora", "dora"])
def trained(request, nf4: Path, tiny_data: Path, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("adapter")
    # The rows of one batch: every step sees the same text, so what it learns shows in the loss.
    lines = (tiny_data / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[: STEPS.batch_size]))
    context = make_context(folder)
    section = TrainAdapter(method=request.param, rank=4, alpha=8, optimisation=STEPS)
    metrics = train_adapter.execute(section, context, base=nf4, data=folder)
    return context.out, metrics


def merge(tmp_path: Path, adapter: Path, original: Path, nf4: Path, data: Path):
    context = make_context(tmp_path / "merge")
    metrics = merge_fp16.execute(
        MERGE, context, original=original, trained_on=nf4, adapter=adapter, data=data
    )
    return context.out, metrics


def test_the_adapter_learns_and_names_no_path(trained) -> None:
    folder, metrics = trained
    assert metrics["loss_last"] < metrics["loss_first"]
    assert metrics["steps"] == 6
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    # peft keeps a set, whose order changes with the process.
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_same_seed_gives_the_same_bytes(nf4: Path, tiny_data: Path, tmp_path: Path) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    digests = set()
    for attempt in ("one", "two"):
        context = make_context(tmp_path / attempt)
        train_adapter.execute(section, context, base=nf4, data=tiny_data)
        digests.add(describe(context.out).digest)
    assert len(digests) == 1


def test_merged_equals_original_plus_adapter(
    trained, tmp_path: Path, tiny_base: Path, nf4: Path, tiny_data: Path
) -> None:
    folder, metrics = merge(tmp_path, trained[0], tiny_base, nf4, tiny_data)
    assert metrics["parity_kl"] < 0.1 * metrics["update_kl"]
    assert metrics["parity_agreement"] > 0.9
    assert metrics["merged_tensors"] == 14
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 14
    assert all("_proj" in name for name in changed)
    load_model(folder, "cpu")


def test_a_merge_that_did_nothing_fails_parity(
    trained, tiny_base: Path, nf4: Path, tiny_data: Path
) -> None:
    good = {"parity_kl": 0.0, "trained_kl": 0.0, "update_kl": 1.0}
    merge_fp16.check_parity(good, MERGE)
    with pytest.raises(ParityError, match=r"merged differs from original\+adapter by nan"):
        merge_fp16.check_parity({**good, "parity_kl": float("nan")}, MERGE)
    # A no-op merge: the original itself, measured as if it were the merged model.
    measured = merge_fp16.measure_parity(
        merged=tiny_base,
        original=tiny_base,
        trained_on=nf4,
        adapter=trained[0],
        data=tiny_data,
        rows=4,
        device="cpu",
    )
    assert measured["parity_kl"] == pytest.approx(measured["update_kl"])
    tight = MergeFp16(parity_max_kl=measured["update_kl"] / 2)
    with pytest.raises(ParityError, match=r"limit merge_fp16.parity_max_kl=.*missed module"):
        merge_fp16.check_parity(measured, tight)


def test_a_diverged_adapter_is_refused(
    trained, tmp_path: Path, tiny_base: Path, nf4: Path, tiny_data: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained[0], broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(ParityError, match="is not finite after merging"):
        merge(tmp_path, broken, tiny_base, nf4, tiny_data)


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
    assert killed.reporter.messages[0] == "resuming from checkpoint-4"
    assert [step for step, _ in killed.reporter.points] == [1, 2, 3, 4, 5, 6]
    assert describe(killed.out).digest == describe(whole.out).digest
