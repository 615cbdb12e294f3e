"""The stage: the merge is what was trained, each fault is named, of several the better is kept."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from requant.errors import ContractError, ParityError
from requant.merging import (
    plan_merge,
    scaled,
    write_plan,
)
from requant.merging.parity import Parity, check_parity, check_result, measure_parity
from requant.merging.rounding import Rounding, check_rounding
from requant.merging.updates import interpolated
from requant.models.load import load_model
from requant.statistics import Estimate, Gain
from tests.stages.conftest import Trained
from tests.support.adapters import qwen, save_adapter, save_model
from tests.support.merge_stage import LIMITS, SECTION, Inputs


@pytest.fixture
def inputs(lora: Trained, tiny_base: Path, nf4: Path, tiny_data: Path) -> Inputs:
    return Inputs(tiny_base, nf4, lora[0], tiny_data)


@pytest.fixture
def either(trained: Trained, inputs: Inputs) -> Inputs:
    """Inputs with a LoRA, then with a DoRA."""
    return dataclasses.replace(inputs, adapter=trained[0])


@pytest.fixture
def altered(inputs: Inputs, tmp_path: Path) -> Inputs:
    """Inputs whose adapter is a copy that a test may spoil."""
    adapter = tmp_path / "altered"
    shutil.copytree(inputs.adapter, adapter)
    return dataclasses.replace(inputs, adapter=adapter)


def test_merged_equals_original_plus_adapter(either: Inputs, tmp_path: Path) -> None:
    folder, metrics = either.merge(tmp_path)
    assert metrics["parity_kl"] < 1e-4 * metrics["update_kl"]
    assert metrics["parity_agreement"] > 0.98
    assert metrics["merged_tensors"] == 14
    assert 0 < metrics["rounding_ratio"] < 0.1
    rows = json.loads((folder / "merge.json").read_text())
    assert len(rows) == 14
    assert all(0 < row["changed_share"] <= 1 and row["update_norm"] > 0 for row in rows)
    before = load_file(either.original / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {row["tensor"] for row in rows}
    for name in ("chat_template.jinja", "generation_config.json", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (either.original / name).read_bytes()
    assert not (folder / "provenance.json").exists()
    load_model(folder, "cpu")


def test_an_adapter_of_another_base_is_refused(altered: Inputs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(altered.original, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, other / "model.safetensors")
    with pytest.raises(ContractError, match=r"altered: was made from another original \(weights"):
        dataclasses.replace(altered, original=other).merge(tmp_path / "a")
    with pytest.raises(ContractError, match="was made from another trained on"):
        dataclasses.replace(altered, trained_on=other).merge(tmp_path / "b")
    (altered.adapter / "provenance.json").unlink()
    with pytest.raises(ContractError, match="does not record which model it was trained on"):
        altered.merge(tmp_path / "c")


@pytest.mark.parametrize("fault", ["no-op", "half", "module"])
def test_a_merge_that_does_not_do_what_the_adapter_does(
    fault: str, either: Inputs, tmp_path: Path
) -> None:
    plan = plan_merge(either.original, [either.adapter])
    merged, changes = tmp_path, {}
    if fault == "no-op":
        merged = either.original
    elif fault == "half":
        changes = write_plan(scaled(plan, 0.5), merged)
    else:
        kept = {n: u for n, u in plan.updates.items() if "layers.0.mlp.down_proj" not in n}
        changes = write_plan(dataclasses.replace(plan, updates=kept), merged)
    measured = either.measured(merged, changes)
    off = {"no-op": 1.0, "half": 0.5, "module": 1.0}[fault]
    assert measured.metrics["parity_module_error"] == pytest.approx(off, abs=0.1)
    with pytest.raises(
        ParityError,
        match=r"layers.0.*.weight.*: the output is off by up to .* merged against "
        r"original\+adapter .* against the quantized base\+adapter",
    ):
        check_parity(measured, dataclasses.replace(LIMITS, parity_max_kl=1e-9))
    # The logits tell as well.
    blind = dataclasses.replace(measured, modules={})
    with pytest.raises(ParityError, match=r"does not do what .* likely a missed module or a wrong"):
        check_parity(blind, dataclasses.replace(LIMITS, parity_max_kl=1e-9))


@pytest.mark.parametrize("dropped", ["layers.14.self_attn.k_proj", "layers.27.mlp.down_proj"])
def test_one_missed_module_of_a_deep_model_is_named(dropped: str, tmp_path: Path) -> None:
    base, adapter, right, wrong = (tmp_path / n for n in ("base", "adapter", "right", "wrong"))
    save_model(qwen(num_hidden_layers=28), base)
    save_adapter(base, LoraConfig(r=4, target_modules="all-linear"), adapter)
    plan = plan_merge(base, [adapter])
    kept = {name: u for name, u in plan.updates.items() if dropped not in name}
    assert len(kept) == len(plan.updates) - 1
    parity = {}
    for folder, updates in ((right, plan.updates), (wrong, kept)):
        folder.mkdir()
        parity[folder] = measure_parity(
            merged=folder,
            changes=write_plan(dataclasses.replace(plan, updates=updates), folder),
            original=base,
            trained_on=base,
            adapters=[(adapter, 1.0)],
            batches=[(torch.arange(100).unsqueeze(0),) * 2],
            device="cpu",
        )
    check_parity(parity[right], LIMITS)
    # What the logits show of it is lost in the rounding of the others.
    shown = parity[wrong].metrics["parity_kl"] / parity[wrong].metrics["update_kl"]
    assert shown < (2 * parity[wrong].rounding_ratio) ** 2
    with pytest.raises(ParityError, match=rf"merge_fp16: model.{dropped}.weight: the output is"):
        check_parity(parity[wrong], LIMITS)


def test_a_diverged_adapter_is_refused(altered: Inputs, tmp_path: Path) -> None:
    path = altered.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ParityError, match="is not finite as torch"):
        altered.merge(tmp_path)


def test_a_missing_module_is_refused(altered: Inputs, tmp_path: Path) -> None:
    path = altered.adapter / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if "layers.1.self_attn.q_proj" not in n}
    save_file(kept, path)
    with pytest.raises(ContractError, match=r"holds nothing for model.layers.1.self_attn.q_proj"):
        altered.merge(tmp_path)


def test_a_swapped_tokenizer_is_refused(altered: Inputs, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(altered.original / name, altered.adapter / name)
    altered.merge(tmp_path / "same")
    path = altered.adapter / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(ContractError, match="its tokenizer is not the original's"):
        altered.merge(tmp_path / "swapped")


def test_over_a_limit_both_figures_are_named(inputs: Inputs, tmp_path: Path) -> None:
    tight = SECTION.model_copy(update={"trained_max_kl": 1e-9, "trained_min_agreement": 0.9999})
    with pytest.raises(
        ParityError,
        match=r"is not the one that was trained.*Missed: merge_fp16.trained_max_kl=1e-09",
    ):
        inputs.merge(tmp_path, tight)
    good = {
        "parity_kl": 0.0, "trained_kl": 0.0, "update_kl": 1.0,
        "trained_agreement": 1.0,
    }  # fmt: skip
    told = {"trained_loss_change": 0.0, "trained_gain": 1.0}
    harmless = Rounding(0.0, 1.0, Estimate(0.0, 0.0), Estimate(1.0, 0.1))
    whole = Gain((2.0, 3.0), (1.0, 2.0), (1.0, 2.0), (1.0, 1.0))
    parity = Parity(good | told, {"a.weight": 0.05}, harmless, whole, 0.02, "bfloat16")
    check_parity(parity, LIMITS)
    # What nobody publishes may be as coarse as it will.
    robbed = dataclasses.replace(parity, rounding=dataclasses.replace(harmless, kl=1.0))
    check_parity(robbed, LIMITS, published=False)
    with pytest.raises(ParityError, match="is too coarse for the update"):
        check_parity(robbed, LIMITS)
    for name in good:
        with pytest.raises(ParityError):
            metrics = {**parity.metrics, name: float("nan")}
            check_parity(dataclasses.replace(parity, metrics=metrics), LIMITS)
    with pytest.raises(ParityError, match="moves the model by 1e-06 nats per token, too little"):
        metrics = {**parity.metrics, "update_kl": 1e-6}
        check_parity(dataclasses.replace(parity, metrics=metrics), LIMITS)
    for left in ((1.9, 2.9), (float("nan"), 2.0)):
        lost = dataclasses.replace(whole, left=left)
        with pytest.raises(ParityError, match=r"Missed: merge_fp16.trained_max_gain_lost=0.5; lik"):
            check_parity(dataclasses.replace(parity, gain=lost), LIMITS)
        with pytest.raises(ParityError, match=r"what was combined loses \S+ nats .* won 1,"):
            check_result(lost, LIMITS)
    for error in (0.2, float("nan")):
        with pytest.raises(ParityError, match=r"a.weight: the output is off by up to"):
            check_parity(dataclasses.replace(parity, modules={"a.weight": error}), LIMITS)


@pytest.mark.parametrize(
    ("dtype", "helps"),
    [
        ("bfloat16", r"Use merge_fp16.dtype=float16 \(steps an eighth.*float32 .*past_nights"),
        ("float16", r"Use merge_fp16.dtype=float32 .*past_nights .*train longer"),
    ],
)
def test_rounding_is_judged_by_harm_and_says_what_helps(dtype: str, helps: str) -> None:
    right = Rounding(0.006, 1.1, Estimate(0.023, 0.004), Estimate(1.03, 0.09))
    check_rounding(right, dtype, LIMITS)
    nan = float("nan")
    for harm, limit in [
        ({"kl": 0.08}, r"over merge_fp16.rounding_max_kl_share=0.05\."),
        ({"kl": nan}, "over merge_fp16.rounding_max_kl_share=0.05"),
        ({"kl": 1.0, "update_kl": 0.0}, "over merge_fp16.rounding_max_kl_share=0.05"),
        ({"loss": Estimate(0.15, 0.014)}, r"over merge_fp16.rounding_max_loss_share=0.1\."),
    ]:
        with pytest.raises(ParityError, match=f"{dtype} is too coarse .*{limit}.*{helps}"):
            check_rounding(dataclasses.replace(right, **harm), dtype, LIMITS)
    # A KL of what float32 sums differ by is none.
    still = dataclasses.replace(right, kl=1e-9, update_kl=-1e-9)
    assert still.kl_share == 0
    nothing = Rounding(4e-9, -1e-8, Estimate(5e-9, 0.0), Estimate(1e-8, 0.0))
    check_rounding(nothing, dtype, LIMITS)
    # Of so few tokens the loss tells nothing, nor does it of one sequence.
    for error in (0.03, nan):
        check_rounding(dataclasses.replace(right, loss=Estimate(0.15, error)), dtype, LIMITS)


def coarse(inputs: Inputs, folder: Path, share: float) -> Inputs:
    """Inputs whose adapter is a share of the trained one, of which bfloat16 takes a large part."""
    shutil.copytree(inputs.adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * (share if "lora_B" in n else 1) for n, t in tensors.items()}, path)
    return dataclasses.replace(inputs, adapter=folder)


@pytest.mark.parametrize("share", [0.015, 0.005])
def test_where_rounding_takes_half_a_fault_is_still_named(
    share: float, inputs: Inputs, tmp_path: Path
) -> None:
    weak = coarse(inputs, tmp_path / "weak", share)
    plan = plan_merge(weak.original, [weak.adapter])
    first, second = (f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1))
    faults = {
        "right": plan.updates,
        "missed": {name: update for name, update in plan.updates.items() if name != first},
        "half": {**plan.updates, first: interpolated(plan.updates[first], 0.5)},
        "sign": {**plan.updates, first: interpolated(plan.updates[first], -1.0)},
        "swapped": {**plan.updates, first: plan.updates[second], second: plan.updates[first]},
    }
    for fault, updates in faults.items():
        (tmp_path / fault).mkdir()
        changes = write_plan(dataclasses.replace(plan, updates=updates), tmp_path / fault)
        measured = weak.measured(tmp_path / fault, changes)
        bad = {n for n, off in measured.modules.items() if off > SECTION.parity_max_module}
        if fault == "right":
            assert measured.rounding_ratio > 0.5
        assert bad == {
            "right": set(), "missed": {first}, "half": {first}, "sign": {first},
            "swapped": {first, second},
        }[fault]  # fmt: skip
        if bad:
            with pytest.raises(ParityError, match=rf"{re.escape(first)}.*: the output is off by"):
                check_parity(measured, dataclasses.replace(LIMITS, parity_max_kl=1e-12))
