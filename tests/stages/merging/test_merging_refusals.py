"""An adapter that does not fit, or is not what it says, is refused by name."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from requant.errors import ContractError
from requant.merging import plan_merge, write_plan
from tests.support.adapters import adapted, qwen, save_adapter, save_model
from tests.support.merges import CASES, TARGETS, changed, key, logits, lora, merge


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "adds tokens or attention, not weights: it cannot be"),
        ({"init_lora_weights": "olora"}, "'olora' moved the base weights.*path_initial_model"),
        ({"init_lora_weights": "pissa_niter_4"}, "moved the base weights"),
        ({"target_parameters": ["w"]}, "target_parameters=.* is not a change of single weights"),
        ({"r": 8}, r"proj.lora_A.weight has rank 4, adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 4, adapter_config.json says 3"),
        ({"target_modules": [*TARGETS, "up_proj"]}, r"holds nothing for .*mlp.up_proj"),
        ({"modules_to_save": ["lm_head"]}, "holds nothing for modules_to_save='lm_head'"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
    ],
)
def test_an_adapter_that_is_not_what_it_says_is_refused(
    change: dict, text: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ContractError, match=text):
        plan_merge(base, [tmp_path / "adapter"])


def test_a_pattern_that_never_ends_on_the_adapters_own_names_is_refused(
    base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {"(a+)+": 4}}))

    def rename(state: dict) -> None:
        for leaf in ("lora_A.weight", "lora_B.weight"):
            state[key("a" * 60 + "!", leaf)] = state[key("self_attn.q_proj", leaf)].clone()

    changed(tmp_path / "adapter", rename)
    with pytest.raises(ContractError, match=r"rank_pattern: '\(a\+\)\+' takes longer than 2 s"):
        plan_merge(base, [tmp_path / "adapter"])


@pytest.mark.parametrize(
    ("kind", "field", "value", "told"),
    [
        (
            "vera",
            "r",
            2**31,
            "r=2147483648; expected a whole number of at most 128, the most the o",
        ),
        (
            "oft",
            "oft_block_size",
            "8",
            "oft_block_size='8'; expected a whole number of at most 128",
        ),
        ("fourierft", "n_frequency", 2**40, "n_frequency=1099511627776; expected a whole number"),
        ("loha", "rank_pattern", {"q_proj": 2**31}, "rank_pattern: 'q_proj'=2147483648; expect"),
        ("ia3", "feedforward_modules", [[]], r"peft can make no adapter of it \(TypeError: .*"),
        ("trainable_tokens", "token_indices", None, "token_indices=None; expected a list of tok"),
    ],
)
def test_a_configuration_that_peft_would_stumble_over_is_named(
    kind: str, field: str, value: object, told: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(base, CASES[kind], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ContractError, match=f"adapter_config.json: {told}") as caught:
        plan_merge(base, [tmp_path / "adapter"])
    assert str(caught.value).endswith("save the adapter again with peft")


def test_the_names_of_a_body_that_the_files_leave_out_are_looked_at_too(
    base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    # Of all names that are matched this alone repeats what the pattern repeats.
    pattern = r"(?!.*\.x$)(a+)+\.!"
    path.write_text(json.dumps({**config, "target_modules": pattern}))

    def rename(state: dict) -> None:
        for leaf in ("lora_A.weight", "lora_B.weight"):
            state[f"base_model.model.{'a' * 40}.x.{leaf}"] = state[
                key("self_attn.q_proj", leaf)
            ].clone()

    changed(tmp_path / "adapter", rename)
    with pytest.raises(ContractError, match=r"target_modules: .* takes longer than 2 s"):
        plan_merge(base, [tmp_path / "adapter"])


def test_an_adapter_of_many_bodies_is_of_another_model(base: Path, tmp_path: Path) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")

    def rename(state: dict) -> None:
        for number in range(5):
            for leaf in ("lora_A.weight", "lora_B.weight"):
                name = f"base_model.model.body{number}.x.{leaf}"
                state[name] = state[key("self_attn.q_proj", leaf)].clone()

    changed(tmp_path / "adapter", rename)
    with pytest.raises(ContractError, match=r"begin with body0\., body1\.,.* on another arch"):
        plan_merge(base, [tmp_path / "adapter"])


def test_a_converted_olora_merges_to_what_was_trained(base: Path, tmp_path: Path) -> None:
    model, run = adapted(base, lora(init_lora_weights="olora"), std=0.0)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "olora"
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * 0.02
    ids = torch.arange(20).unsqueeze(0)
    expected = run(ids)
    model.save_pretrained(tmp_path / "unconverted")
    with pytest.raises(ContractError, match=r"'olora' moved the base weights"):
        plan_merge(base, [tmp_path / "unconverted"])
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "initial"
    )
    out = merge(base, tmp_path / "out", tmp_path / "converted")
    assert (logits(out) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("ending", "resized", "told"),
    [
        (
            "lora_B.weight",
            (slice(None), slice(3)),
            r"lora_B.weight is \[64, 3\], expected 4 columns",
        ),
        ("magnitude_vector", slice(1), r"lora_magnitude_vector is \[1\], expected 64 entries"),
    ],
)
def test_factors_that_do_not_fit_each_other_are_refused(
    ending: str, resized, told: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(target_modules=["q_proj"], use_dora=True), tmp_path)
    path, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(ending))
    save_file({**weights, name: weights[name][resized].contiguous()}, path)
    with pytest.raises(ContractError, match=told):
        plan_merge(base, [tmp_path])
    save_file(weights, path)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "use_dora": False}))
    with pytest.raises(ContractError, match=r"has a magnitude and .* says use_dora=false"):
        plan_merge(base, [tmp_path])


def test_weights_that_are_no_floats_are_refused_before_the_work(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    save_adapter(base, lora(target_modules=["q_proj"]), tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    (file,) = (f for f in folder.glob("*.safetensors") if name in load_file(f))
    save_file({n: t.to(torch.int8) if n == name else t for n, t in load_file(file).items()}, file)
    with pytest.raises(ContractError, match=r"q_proj.weight \(I8\), which cannot be merged into"):
        plan_merge(folder, [tmp_path / "adapter"])


def test_the_index_names_every_shard_whatever_it_is_called(base: Path, tmp_path: Path) -> None:
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base, folder)
    save_adapter(base, lora(), adapter)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (tmp_path / "out").mkdir()
    write_plan(plan_merge(folder, [adapter]), tmp_path / "out", dtype="float32")
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == content["weight_map"]


def test_half_an_adapter_and_a_stranger_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, lora(), adapter)
    changed(adapter, lambda state: state.pop(key("self_attn.q_proj", "lora_B.weight")))
    with pytest.raises(ContractError, match=r"layers.0.self_attn.q_proj lacks lora_B.weight"):
        plan_merge(base, [adapter])
    changed(adapter, lambda state: state.pop(key("self_attn.q_proj", "lora_A.weight")))
    with pytest.raises(ContractError, match=r"holds nothing for model.layers.0.self_attn.q_proj"):
        plan_merge(base, [adapter])
    save_adapter(base, lora(bias="all"), adapter)
    changed(adapter, lambda state: state.pop(key("self_attn.k_proj", "bias")))
    with pytest.raises(ContractError, match=r"lacks model.layers.0.self_attn.k_proj.bias, which"):
        plan_merge(base, [adapter])
    save_adapter(base, CASES["lora_bias"], adapter)
    changed(adapter, lambda state: state.pop(key("self_attn.q_proj", "lora_B.bias")))
    with pytest.raises(ContractError, match=r"lacks model.layers.0.self_attn.q_proj.lora_B.bias"):
        plan_merge(base, [adapter])
    save_adapter(base, CASES["modules_to_save"], adapter)
    changed(adapter, lambda state: state.pop(key("input_layernorm", "weight")))
    with pytest.raises(ContractError, match=r"lacks model.layers.0.input_layernorm.weight, which"):
        plan_merge(base, [adapter])
    save_adapter(base, peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]), adapter)
    changed(adapter, lambda state: state.popitem())
    with pytest.raises(ContractError, match=r"adapter_model.safetensors: lacks .*ia3_l"):
        plan_merge(base, [adapter])


def test_an_adapter_of_another_architecture_is_refused(base: Path, tmp_path: Path) -> None:
    wide = save_model(qwen(intermediate_size=128), tmp_path / "wide")
    save_adapter(wide, lora(), tmp_path / "a")
    with pytest.raises(
        ContractError, match=r"down_proj.weight \(\[64, 96\] in the original, \[64, 128"
    ):
        plan_merge(base, [tmp_path / "a"])
    deep = save_model(qwen(num_hidden_layers=3), tmp_path / "deep")
    save_adapter(deep, lora(), tmp_path / "b")
    with pytest.raises(
        ContractError, match=r"3 of its 9 tensors are not in the original: .*layers.2"
    ):
        plan_merge(base, [tmp_path / "b"])
