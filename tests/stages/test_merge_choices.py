"""What is merged into, how much of it, and with which past nights."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from requant.config.quantizing import QuantizeBase
from requant.config.training import TrainAdapter
from requant.errors import ContractError, ParityError
from requant.merging import (
    MergePlan,
    Mix,
    onto_dequantized,
    plan_merge,
    scaled,
    write_dequantized,
    write_plan,
)
from requant.merging.parity import check_parity
from requant.merging.vocabulary import Vocabulary
from requant.models.load import load_model
from requant.models.provenance import weights_digest, write_provenance
from requant.stages import merge_fp16, quantize_base, train_adapter
from tests.stages.conftest import STEPS, Trained, make_context
from tests.support.adapters import save_adapter
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


@pytest.mark.parametrize("method", ["nf4", "int8", "gptq"])
def test_dequantized_weights_are_those_the_library_multiplies_with(
    method: str, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    from peft.utils.integrations import dequantize_module_weight

    context = make_context(tmp_path)
    section = QuantizeBase(method=method, group_size=64, calibration_rows=4)
    quantize_base.execute(section, context, base=tiny_base, data=tiny_data)
    out = tmp_path / "dequantized"
    out.mkdir()
    write_dequantized(MergePlan(tiny_base, {}, Vocabulary()), context.out, out)
    ours, original = (
        load_file(out / "model.safetensors"),
        load_file(tiny_base / "model.safetensors"),
    )
    model = load_model(context.out, "cpu")
    changed = [name for name in ours if not torch.equal(ours[name], original[name].float())]
    assert len(changed) == 14
    for name in changed:
        tensor = ours[name]
        module = model.get_submodule(name.removesuffix(".weight"))
        if method == "gptq":
            theirs = module.dequantize_weight().T
        else:
            theirs = dequantize_module_weight(module)
        torch.testing.assert_close(tensor, theirs.float(), rtol=5e-3, atol=1e-4)
        assert 0 < (tensor - original[name].float()).norm() < 0.3 * tensor.norm()


def test_the_dequantized_merge_is_closer_to_what_was_trained(
    either: Inputs, tmp_path: Path
) -> None:
    _, onto_original = either.merge(tmp_path / "a")
    section = SECTION.model_copy(update={"base": "dequantized"})
    _, dequantized = either.merge(tmp_path / "b", section)
    assert dequantized["trained_kl"] < 0.1 * onto_original["trained_kl"]
    assert dequantized["parity_kl"] < 1e-3 * dequantized["update_kl"]


def test_the_figures_of_a_dequantized_merge_are_the_adapters(
    tiny_base: Path, nf4: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    save_adapter(tiny_base, config, tmp_path / "adapter")
    plan = plan_merge(tiny_base, [tmp_path / "adapter"])
    changes = {}
    for name, merged in (("original", plan), ("dequantized", onto_dequantized(plan, nf4))):
        (tmp_path / name).mkdir()
        changes[name] = write_plan(merged, tmp_path / name)
    assert changes["dequantized"].keys() == changes["original"].keys() == plan.updates.keys()
    for name, change in changes["dequantized"].items():
        onto_original = changes["original"][name]
        assert change.update == pytest.approx(onto_original.update, rel=1e-3)
        assert change.rounding_ratio == pytest.approx(onto_original.rounding_ratio, rel=0.1)
        assert change.changed_share == pytest.approx(onto_original.changed_share, abs=0.1)


def test_an_adapter_that_adds_nothing_is_refused_on_any_base(
    altered: Inputs, tmp_path: Path
) -> None:
    path = altered.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * ("lora_A" in n) for n, t in tensors.items()}, path)
    for base in ("original", "dequantized"):
        with pytest.raises(ParityError, match="the update is zero everywhere"):
            altered.merge(tmp_path / base, SECTION.model_copy(update={"base": base}))


def test_of_several_the_better_is_kept(inputs: Inputs, tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"base": "measured", "scales": (1.0, 0.5)})
    folder, metrics = inputs.merge(tmp_path, section)
    tried = [f"{base}-{scale}" for base in ("original", "dequantized") for scale in ("1", "0.5")]
    sums = {name: metrics[f"loss_new/{name}"] + metrics[f"loss_old/{name}"] for name in tried}
    best = min(sums, key=lambda name: sums[name])
    assert best == (
        f"{'dequantized' if metrics['chosen_dequantized'] else 'original'}-"
        f"{metrics['chosen_scale']:g}"
    )
    assert len(set(sums.values())) == 4
    load_model(folder, "cpu")


@pytest.fixture(scope="module")
def yesterdays(nf4: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = make_context(tmp_path_factory.mktemp("yesterday"), seed=5)
    section = TrainAdapter(rank=2, optimisation=STEPS)
    train_adapter.execute(section, context, base=nf4, data=tiny_data)
    return context.out


def test_past_nights_are_merged_from_the_original(
    yesterdays: Path, either: Inputs, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    folder, metrics = either.merge(
        tmp_path / "both", SECTION.model_copy(update={"past_nights": 1}), past_1=yesterdays
    )
    alone, _ = either.merge(tmp_path / "alone")
    before = load_file(either.original / "model.safetensors")
    both, one = (load_file(f / "model.safetensors") for f in (folder, alone))
    name = "model.layers.0.self_attn.q_proj.weight"
    yesterday, _ = Inputs(either.original, nf4, yesterdays, tiny_data).merge(tmp_path / "past")
    other = load_file(yesterday / "model.safetensors")
    mean = (one[name].double() + other[name].double()) / 2
    assert not torch.equal(both[name], one[name])
    torch.testing.assert_close(both[name].double(), mean, rtol=0.01, atol=1e-4)
    assert both.keys() == before.keys()
    assert metrics["parity_kl"] < 5e-4 * metrics["update_kl"]
    assert metrics["parity_of_result"] == (not is_dora(either.adapter))


def is_dora(adapter: Path) -> bool:
    return bool(json.loads((adapter / "adapter_config.json").read_text())["use_dora"])


def test_a_wrong_share_of_a_past_night_is_refused(
    yesterdays: Path, inputs: Inputs, tmp_path: Path
) -> None:
    adapters = [inputs.adapter, yesterdays]
    asked = plan_merge(inputs.original, adapters, mix=Mix(weights=(0.6, 0.4)))
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    changes = {}
    for folder, weights in ((right, (0.6, 0.4)), (wrong, (0.6, 0.3))):
        folder.mkdir()
        plan = plan_merge(inputs.original, adapters, mix=Mix(weights=weights))
        changes[folder] = write_plan(plan, folder)
    assert asked.equivalent_adapters == [(inputs.adapter, 0.6), (yesterdays, 0.4)]
    check_parity(inputs.measured(right, changes[right], asked.equivalent_adapters), LIMITS)
    with pytest.raises(ParityError, match="the output is off by up to"):
        check_parity(inputs.measured(wrong, changes[wrong], asked.equivalent_adapters), LIMITS)
    assert scaled(asked, 0.5).equivalent_adapters == [(inputs.adapter, 0.3), (yesterdays, 0.2)]
    assert plan_merge(inputs.original, adapters, mix=Mix("ties")).equivalent_adapters is None


def test_what_has_no_unmerged_twin_is_proved_by_tonights_adapter(
    yesterdays: Path, inputs: Inputs, tmp_path: Path
) -> None:
    section = SECTION.model_copy(update={"past_nights": 1, "combine": "ties"})
    _, metrics = inputs.merge(tmp_path / "ties", section, past_1=yesterdays)
    _, alone = inputs.merge(tmp_path / "alone")
    assert (metrics["parity_of_result"], alone["parity_of_result"]) == (0.0, 1.0)
    assert metrics["parity_kl"] == alone["parity_kl"]
    assert metrics["changed_share"] != alone["changed_share"]
    assert abs(metrics["result_loss_change"]) < 0.1
    limits = {"weights": (500.0, 500.0), "trained_max_gain_lost": 0.5}
    absurd = section.model_copy(update=limits)
    with pytest.raises(ParityError, match=r"what was combined loses \S+ nats per token"):
        inputs.merge(tmp_path / "absurd", absurd, past_1=yesterdays)


def test_what_was_left_of_a_killed_attempt_is_not_used(inputs: Inputs, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    # A tokenizer of another model: what is built there would be measured on other tokens.
    left = context.work / "original-0.5" / "added_tokens.json"
    left.parent.mkdir()
    left.write_text('{"half": 0}')
    section = SECTION.model_copy(update={"scales": (1.0, 0.5)})
    merge_fp16.execute(section, context, **vars(inputs))
    seen = make_context(tmp_path / "fresh")
    merge_fp16.execute(section, seen, **vars(inputs))
    assert context.reporter.messages == seen.reporter.messages


def test_an_unquantized_base_is_its_own_original(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    context = make_context(tmp_path / "adapter")
    section = TrainAdapter(method="rslora", rank=4, optimisation=STEPS)
    train_adapter.execute(section, context, base=tiny_base, data=tiny_data)
    _, metrics = Inputs(tiny_base, tiny_base, context.out, tiny_data).merge(tmp_path / "m")
    assert metrics["trained_kl"] == metrics["parity_kl"]
    write_provenance(context.out, original=weights_digest(tiny_base), trained_on="0" * 64)
    with pytest.raises(ContractError, match=r"another trained on \(weights 000000000000, here"):
        Inputs(tiny_base, tiny_base, context.out, tiny_data).merge(tmp_path / "n")
