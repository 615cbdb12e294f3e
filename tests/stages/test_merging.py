"""Every mergeable adapter merges to a float32 reference rounded once; files keep their form."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from requant.adapters.folder import PREFIX
from requant.errors import ContractError, ParityError
from requant.merging import Mix, plan_merge, scaled, write_plan
from requant.merging.lora import is_target
from requant.merging.stream import write_merged
from requant.merging.updates import LowRank, Update, merge_low_rank
from requant.methods import peft_types
from requant.models.headers import read_shard_header
from tests.support.adapters import adapted, gpt2, qwen, save_adapter, save_model
from tests.support.chain import child_process

TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **fields})


CASES = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "patterns": lora(
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        alpha_pattern={"layers.0.self_attn.v_proj": 9},
    ),
    "modules_to_save": lora(modules_to_save=["embed_tokens", "lm_head", "input_layernorm"]),
    "embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "dora_embedding": lora(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "output_layer": lora(target_modules=["q_proj", "lm_head"]),
    "all_biases": lora(bias="all"),
    "lora_bias": lora(target_modules=["q_proj", "v_proj"], lora_bias=True),
    "regex": lora(target_modules=r".*layers\.0.*(q_proj|up_proj)"),
    "some_layers": lora(layers_to_transform=[1]),
    "excluded": lora(exclude_modules=["layers.0.self_attn.q_proj"]),
    "conv1d": lora(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
    "dora_conv1d": lora(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True),
    "tokens": lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [9, 3]}),
    "output_tokens": lora(
        trainable_token_indices={"embed_tokens": [9, 3], "lm_head": [4]}, target_modules=["q_proj"]
    ),
    "trainable_tokens": peft.TrainableTokensConfig(
        token_indices=[9, 3], target_modules=["embed_tokens"]
    ),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=4, total_step=9, target_modules=TARGETS),
    "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=TARGETS),
    "road": peft.RoadConfig(group_size=32, target_modules=TARGETS),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS),
    "boft": peft.BOFTConfig(boft_block_size=8, target_modules=TARGETS),
    "miss": peft.MissConfig(r=4, target_modules=TARGETS),
    "randlora": peft.RandLoraConfig(r=4, target_modules=TARGETS),
    "fourierft": peft.FourierFTConfig(n_frequency=50, target_modules=TARGETS),
    "ln_tuning": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "loha": peft.LoHaConfig(r=4, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=4, target_modules=TARGETS),
    "hra": peft.HRAConfig(r=4, target_modules=TARGETS),
    "saved_beside_ia3": peft.IA3Config(
        target_modules=TARGETS, feedforward_modules=["down_proj"], modules_to_save=["lm_head"]
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 with biases, in shards; an output layer of its own."""
    folder = tmp_path_factory.mktemp("qwen")
    return save_model(qwen(attention_bias=True), folder, max_shard_size="60KB")


@pytest.fixture(scope="module")
def transposed_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(gpt2(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(qwen(tie_word_embeddings=True), tmp_path_factory.mktemp("tied"))


def merge(base: Path, out: Path, *adapters: Path, scale: float = 1.0, **how) -> Path:
    out.mkdir(exist_ok=True)
    write_plan(scaled(plan_merge(base, adapters, **how), scale), out)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_rounded_once(merged: torch.Tensor, exact: torch.Tensor) -> None:
    """Half a unit in the last place of the dtype, and float32's own noise."""
    eps = torch.finfo(merged.dtype).eps
    exact = exact.double()
    bound = exact.abs() * eps / 2 * (1 + 1e-3) + exact.abs().max() * 1e-6
    assert ((merged.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("case", CASES)
def test_it_is_pefts_own_merge_rounded_once(
    case: str, base: Path, transposed_base: Path, tmp_path: Path
) -> None:
    base = transposed_base if "conv1d" in case else base
    reference = save_adapter(base, CASES[case], tmp_path / "adapter")
    merged = tensors(merge(base, tmp_path / "out", tmp_path / "adapter"))
    before = tensors(base)
    assert merged.keys() == before.keys()
    moved = 0
    for name, tensor in merged.items():
        assert tensor.dtype == before[name].dtype
        assert_rounded_once(tensor, reference[name])
        if torch.equal(reference[name].bfloat16(), before[name]):
            assert torch.equal(tensor, before[name])
        moved += not torch.equal(tensor, before[name])
    assert moved >= 1
    for file in base.glob("*.safetensors"):
        assert read_shard_header(file).raw == read_shard_header(tmp_path / "out" / file.name).raw
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_every_type_peft_has_is_merged_exactly_or_refused(base: Path, tmp_path: Path) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    shown = {config.peft_type.value for config in CASES.values()}
    assert shown == set(peft_types(merges=True))
    save_adapter(base, lora(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for kind in {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - shown:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": kind}))
        with pytest.raises(ContractError, match=r"cannot be merged|not among those requant has"):
            plan_merge(base, [tmp_path])


@pytest.mark.parametrize("case", ["ln_tuning", "ia3", "hra", "saved_beside_ia3", "conv1d_norms"])
def test_a_plan_can_be_written_twice(
    case: str, base: Path, transposed_base: Path, tmp_path: Path
) -> None:
    model = transposed_base if case == "conv1d_norms" else base
    norms = peft.LNTuningConfig(target_modules=["ln_1", "ln_f"])
    reference = save_adapter(model, CASES.get(case, norms), tmp_path / "adapter")
    plan = plan_merge(model, [tmp_path / "adapter"])
    for attempt in ("first", "second"):
        out = tmp_path / attempt
        out.mkdir()
        write_plan(plan, out)
        for name, tensor in tensors(out).items():
            if name in reference:
                assert_rounded_once(tensor, reference[name])
            else:
                assert_rounded_once(tensor, reference[f"transformer.{name}"])


def test_peft_saves_the_base_with_an_output_layer_and_it_is_passed_over(
    base: Path, tied_base: Path, tmp_path: Path
) -> None:
    config = peft.IA3Config(target_modules=["q_proj", "lm_head"], feedforward_modules=[])
    reference = save_adapter(base, config, tmp_path / "adapter")
    merged = tensors(merge(base, tmp_path / "out", tmp_path / "adapter"))
    assert_rounded_once(merged["lm_head.weight"], reference["lm_head.weight"])
    save_adapter(tied_base, config, tmp_path / "tied")
    with pytest.raises(ContractError, match=r"trained lm_head.weight, but .* are tied"):
        plan_merge(tied_base, [tmp_path / "tied"])


def save_shards(weights: dict[str, torch.Tensor], base: Path, cut: int) -> None:
    base.mkdir()
    for number, names in enumerate([list(weights)[:cut], list(weights)[cut:]], 1):
        file = base / f"model-{number:05}-of-00002.safetensors"
        part = {name: weights[name] for name in names}
        save_file(part, file, metadata={"format": "pt", "part": f"{number}"})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_rank_dtype_and_split(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    folder = tmp_path_factory.mktemp("any")
    draw, count = data.draw, data.draw(st.integers(1, 5), "tensors")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99), "seed"))
    floating = [torch.bfloat16, torch.float16, torch.float32]
    weights, updates, exact = {}, {}, {}
    for index in range(count):
        name = f"m{index}.weight"
        rows, columns = draw(st.integers(1, 700)), draw(st.integers(1, 700))
        weights[name] = torch.randn(rows, columns, generator=generator)
        if draw(st.booleans(), "updated"):
            weights[name] = weights[name].to(draw(st.sampled_from(floating)))
            rank, outputs = draw(st.integers(1, 9)), draw(st.sampled_from(["rows", "columns"]))
            left = torch.randn(rows, rank, generator=generator) * 0.02
            right = torch.randn(rank, columns, generator=generator)
            length = rows if outputs == "rows" else columns
            magnitude = torch.rand(length, generator=generator) + 0.5
            low = LowRank(left, right, 0.5, magnitude if draw(st.booleans()) else None, outputs)
            # Rows an adapter brings start from nothing.
            grown = draw(st.integers(0, 9)) if low.magnitude is None else 0
            left = torch.cat([left, torch.ones(grown, rank)])
            low = dataclasses.replace(low, left=left)
            start = torch.cat([weights[name].double(), torch.zeros(grown, columns)])
            whole = start + 0.5 * left.double() @ right.double()
            if low.magnitude is not None:
                axis = 1 if outputs == "rows" else 0
                unit = whole / whole.norm(dim=axis, keepdim=True)
                whole = unit * magnitude.double().unsqueeze(axis)
            exact[name] = whole
            updates[name] = Update(
                tuple(whole.shape),
                lambda low=low: lambda weight, part: merge_low_rank(weight, low, part),
                by_rows=low.magnitude is None or outputs == "rows",
            )
        else:
            weights[name] = weights[name].to(draw(st.sampled_from([*floating, torch.int8])))
    base, out = folder / "base", folder / "out"
    out.mkdir()
    save_shards(weights, base, draw(st.integers(0, count)))
    dtype = draw(st.sampled_from([None, torch.bfloat16, torch.float16, torch.float32]), "dtype")
    changes = write_merged(base, updates, out, dtype=dtype and str(dtype).removeprefix("torch."))
    merged = tensors(out)
    assert changes.keys() == updates.keys()
    for name, tensor in weights.items():
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        assert merged[name].dtype == kind
        if name in exact:
            assert_rounded_once(merged[name], exact[name])
        else:
            assert torch.equal(merged[name], tensor.to(kind))
    for file in base.iterdir():
        before, after = read_shard_header(file), read_shard_header(out / file.name)
        assert before.metadata == after.metadata
        assert list(before.tensors) == list(after.tensors)
        if all(weights[name].shape == merged[name].shape for name in before.tensors) and not dtype:
            assert before.raw == after.raw


def test_the_figures_are_those_of_the_formula(tmp_path: Path) -> None:
    weight = torch.randn(600, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"a.weight": weight, "b.weight": weight.clone()}, tmp_path / "model.safetensors")
    delta = torch.full((600, 500), 0.013)
    out = tmp_path / "out"
    out.mkdir()
    update = Update((600, 500), lambda: lambda block, rows: block + delta[rows])
    change = write_merged(tmp_path, {"a.weight": update}, out)["a.weight"]
    exact = weight.float() + delta
    error = (exact.bfloat16().float() - exact).norm()
    assert change.update**0.5 == pytest.approx(delta.norm().item(), rel=1e-3)
    assert change.rounding_ratio == pytest.approx((error / delta.norm()).item(), rel=1e-3)
    assert change.changed_share == pytest.approx((exact.bfloat16() != weight).float().mean().item())


# -------------------------------------------------------------------- what must fit


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


def changed(adapter: Path, change) -> None:
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def key(module: str, leaf: str) -> str:
    return f"{PREFIX}model.layers.0.{module}.{leaf}"


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


def test_layers_the_model_does_not_load_are_left_as_they_are(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    extra = {"model.layers.2.self_attn.q_proj.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
    save_file(extra, folder / "extra.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(extra, "extra.safetensors")
    index.write_text(json.dumps(content))
    save_adapter(base, lora(), tmp_path / "adapter")
    merged = tensors(merge(folder, tmp_path / "out", tmp_path / "adapter"))
    assert torch.equal(merged[next(iter(extra))], next(iter(extra.values())))


def test_what_is_no_language_model_is_named(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, lora(), adapter)
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {}}))
    with pytest.raises(ContractError, match="is a model of several modalities"):
        plan_merge(folder, [adapter])
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_A" in name)
    save_file({**weights, name: weights[name][:, :, None, None].contiguous()}, path)
    with pytest.raises(ContractError, match="is a convolution; requant merges linear layers"):
        plan_merge(base, [adapter])


def test_conv1d_is_known_by_the_files_not_by_the_flag(
    transposed_base: Path, tmp_path: Path
) -> None:
    """peft leaves fan_in_fan_out false where one target of several is Conv1D."""
    reference = save_adapter(transposed_base, CASES["conv1d"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": False}))
    merged = tensors(merge(transposed_base, tmp_path / "out", tmp_path / "adapter"))
    for name, tensor in merged.items():
        assert_rounded_once(tensor, reference[name])


def test_only_the_weights_the_model_is_loaded_from_are_written(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    save_file({"mtp.layers.0.q_proj.weight": torch.zeros(4, 4)}, folder / "mtp.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["mtp.layers.0.q_proj.weight"] = "mtp.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.gguf"):
        (folder / name).write_bytes(b"the same weights again")
    save_adapter(base, lora(), tmp_path / "adapter")
    out = merge(folder, tmp_path / "out", tmp_path / "adapter")
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in base.iterdir()} | {"mtp.safetensors"}


def test_nan_and_an_update_that_vanishes_are_refused(base: Path, tmp_path: Path) -> None:
    adapter, name = tmp_path / "adapter", key("self_attn.q_proj", "lora_B.weight")
    save_adapter(base, lora(), adapter)

    def spoil(state) -> None:
        state[name][3, 1] = float("nan")

    changed(adapter, spoil)
    with pytest.raises(ParityError, match=r"layers.0.self_attn.q_proj.weight is not finite"):
        merge(base, tmp_path / "out", adapter)
    changed(adapter, lambda state: [t.zero_() for n, t in state.items() if "lora_B" in n])
    with pytest.raises(ParityError, match="the update is zero everywhere"):
        merge(base, tmp_path / "out", adapter)
    changed(adapter, lambda state: [t.fill_(1e-12) for n, t in state.items() if "lora_B" in n])
    with pytest.raises(ParityError, match="rounding took all of the update"):
        merge(base, tmp_path / "out", adapter)


def test_targets_are_read_as_peft_reads_them(base: Path) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    model = AutoModelForCausalLM.from_pretrained(base)
    names = [name for name, _ in model.named_modules() if name]
    for case in ("lora", "regex", "some_layers", "excluded", "modules_to_save"):
        config = CASES[case]
        ours = [name for name in names if is_target(config.to_dict(), name)]
        assert ours == [
            name
            for name in names
            if check_target_module_exists(config, name) is True
            or hasattr(check_target_module_exists(config, name), "group")
        ]


# -------------------------------------------------------------------- the vocabulary


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(input_ids=torch.arange(20).unsqueeze(0)).logits


def test_one_of_two_tied_tensors_is_refused_or_untied(tied_base: Path, tmp_path: Path) -> None:
    config = lora(modules_to_save=["embed_tokens"])
    model, run = adapted(tied_base, config)
    expected = run(torch.arange(20).unsqueeze(0))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ContractError, match=r"trained model.embed_tokens.weight, but .*lm_head.weight.* are tied"
    ):
        plan_merge(tied_base, [tmp_path / "adapter"])
    out = merge(tied_base, tmp_path / "out", tmp_path / "adapter", untie=True)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(
        tensors(out)["lm_head.weight"], tensors(tied_base)["model.embed_tokens.weight"]
    )
    assert (logits(out) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_tied_file_that_holds_both_keeps_both_equal(tied_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tied_base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = lora(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    save_adapter(tied_base, config, tmp_path / "adapter")
    merged = tensors(merge(folder, tmp_path / "out", tmp_path / "adapter"))
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], weights["lm_head.weight"])


@pytest.mark.parametrize(
    "config",
    [
        lora(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
        lora(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
        lora(trainable_token_indices={"embed_tokens": [9, 3]}),
        peft.TrainableTokensConfig(token_indices=[9, 3], target_modules=["embed_tokens"]),
    ],
    ids=["saved", "lora", "tokens", "trainable_tokens"],
)
def test_tied_tensors_that_changed_alike_stay_tied(
    config: peft.PeftConfig, tied_base: Path, tmp_path: Path
) -> None:
    model, run = adapted(tied_base, config)
    expected = run(torch.arange(20).unsqueeze(0))
    model.save_pretrained(tmp_path / "adapter")
    out = merge(tied_base, tmp_path / "out", tmp_path / "adapter")
    assert tensors(out).keys() == tensors(tied_base).keys()
    assert (out / "config.json").read_bytes() == (tied_base / "config.json").read_bytes()
    assert (logits(out) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_tied_file_that_holds_both_takes_new_tokens_in_both(
    tied_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tied_base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_adapter(tied_base, lora(trainable_token_indices=[9, 3]), tmp_path / "adapter")
    merged = tensors(merge(folder, tmp_path / "out", tmp_path / "adapter"))
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    changed = (merged["lm_head.weight"] != weights["lm_head.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [3, 9]


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_alone_are_carried_over(tied: bool, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_model(qwen(tie_word_embeddings=tied), base)
    tokenizer_with(base, 128)
    config = lora(trainable_token_indices={"embed_tokens": [129, 130, 5]})
    model, run = adapted(base, config, rows=131)
    expected = run(torch.tensor([[1, 129, 130, 5, 7]]))
    model.save_pretrained(adapter)
    tokenizer_with(adapter, 131)
    out = merge(base, tmp_path / "out", adapter)
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(
        input_ids=torch.tensor([[1, 129, 130, 5, 7]])
    ).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_token_rows_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, lora(trainable_token_indices={"embed_tokens": [9, 3]}), adapter)
    path, settings = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    config, weights = json.loads(settings.read_text()), load_file(path)
    for indices, told in (
        ([9, 3, 4], r"has 2 rows, adapter_config.json names 3 tokens"),
        ([9, 500], r"token 500 has no row"),
    ):
        config["trainable_token_indices"] = {"embed_tokens": indices}
        settings.write_text(json.dumps(config))
        with pytest.raises(ContractError, match=told):
            plan_merge(base, [adapter])
    save_file({n: t for n, t in weights.items() if "tokens_delta" not in n}, path)
    with pytest.raises(ContractError, match=r"holds no rows for the tokens of embed_tokens"):
        plan_merge(base, [adapter])


def tokenizer_with(folder: Path, tokens: int) -> None:
    """Save a tokenizer of so many words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary_is_carried_over(tied: bool, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_model(qwen(tie_word_embeddings=tied), base, max_shard_size="60KB")
    tokenizer_with(base, 128)
    model, run = adapted(base, lora(), rows=131)
    expected = run(torch.arange(20).unsqueeze(0))
    model.save_pretrained(adapter, save_embedding_layers=True)
    with pytest.raises(ContractError, match=r"has 131 rows, the original 128, and it brings no"):
        plan_merge(base, [adapter])
    tokenizer_with(adapter, 131)
    out = merge(base, tmp_path / "out", adapter)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 131
    assert tensors(out)["model.embed_tokens.weight"].shape == (131, 64)
    assert ("lm_head.weight" in tensors(out)) == (not tied)
    assert (out / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(out).values())
    assert (logits(out) - expected).abs().max() < 0.02 * expected.abs().max()
    with pytest.raises(ContractError, match=r"scale 0.5: the adapter brings new rows"):
        scaled(plan_merge(base, [adapter]), 0.5)
    (base / "chat_template.jinja").write_text("old")
    out = merge(base, tmp_path / "again", adapter)
    assert (out / "chat_template.jinja").read_text() == "old"
    with pytest.raises(ContractError, match=r"changes the vocabulary .* merge it alone"):
        plan_merge(base, [adapter, adapter])
    tokenizer_with(adapter, 140)
    with pytest.raises(ContractError, match="its tokenizer has 140 tokens and the merged embeddin"):
        plan_merge(base, [adapter])


# -------------------------------------------------------------------- several adapters


def test_several_adapters_add_up(base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    ends = [save_adapter(base, lora(), folder, seed=s) for s, folder in enumerate(folders)]
    before = tensors(base)
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix("cat", (0.7, 0.4))))
    for name, tensor in merged.items():
        start = before[name].double()
        deltas = [end[name].double() - start for end in ends]
        assert_rounded_once(tensor, start + 0.7 * deltas[0] + 0.4 * deltas[1])


def test_cat_is_pefts_cat(base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        save_adapter(base, lora(), folder, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type="cat")
    model.set_adapter("both")
    reference = model.merge_and_unload().state_dict()
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix("cat", (0.7, 0.4))))
    for name, tensor in merged.items():
        assert_rounded_once(tensor, reference[name])


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruning_keeps_its_share_and_repeats_itself(
    method: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(), tmp_path / "a")
    save_adapter(base, lora(), tmp_path / "b", seed=2)
    mix = Mix(method, (1.0, 1.0), density=0.25, seed=7)
    folders = (tmp_path / "a", tmp_path / "b")
    first = tensors(merge(base, tmp_path / "one", *folders, mix=mix))
    again = tensors(merge(base, tmp_path / "two", *folders, mix=mix))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name, before = "model.layers.0.mlp.down_proj.weight", tensors(base)
    kept = (first[name] != before[name]).float().mean().item()
    # Of two updates a quarter each: 7 of 16 where they overlap by chance.
    assert 0.25 < kept < 0.5


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_pruning_is_pefts_on_whole_updates(method: str, base: Path, tmp_path: Path) -> None:
    from peft.utils import merge_utils

    folders = (tmp_path / "a", tmp_path / "b")
    ends = [save_adapter(base, lora(), folder, seed=s) for s, folder in enumerate(folders)]
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix(method, (0.7, 0.4), 0.5)))
    before = tensors(base)
    for name in (name for name in merged if "down_proj" in name):
        start = before[name].float()
        combine = getattr(merge_utils, method)
        delta = combine([end[name] - start for end in ends], torch.tensor([0.7, 0.4]), 0.5)
        # Updates of nearly equal size may be ranked either way.
        close = (merged[name].float() - (start + delta)).abs() < 1e-3 * start.abs() + 1e-3
        assert close.float().mean() > 0.999


def test_a_share_of_the_update_lies_between(base: Path, tmp_path: Path) -> None:
    end = save_adapter(base, lora(use_dora=True), tmp_path / "adapter")
    before = tensors(base)
    half = tensors(merge(base, tmp_path / "half", tmp_path / "adapter", scale=0.5))
    for name, tensor in half.items():
        assert_rounded_once(tensor, (before[name].double() + end[name].double()) / 2)


# -------------------------------------------------------------------- interrupted


def merge_until(shards: int, base: Path, adapter: Path, out: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == shards:
            os.kill(os.getpid(), signal.SIGKILL)

    out.mkdir()
    write_plan(plan_merge(base, [adapter]), out, on_shard=stop)


def test_a_merge_killed_at_any_shard_leaves_nothing_that_loads(base: Path, tmp_path: Path) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")
    shards = len(list(base.glob("*.safetensors")))
    assert shards == 3
    for shard in range(1, shards + 1):
        out = tmp_path / f"out{shard}"
        code = child_process(merge_until, shard, base, tmp_path / "adapter", out)
        assert code == -signal.SIGKILL
        assert not (out / "config.json").exists()
        with pytest.raises(ValueError, match=r"config.json"):
            AutoModelForCausalLM.from_pretrained(out)
