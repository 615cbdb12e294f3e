"""quantize_base on a real tiny model: loadable, the same bytes twice, trainable, refused early."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from requant.config.merge import MergeFp16
from requant.config.quantizing import QuantizeBase
from requant.config.training import Optimisation, TrainAdapter
from requant.errors import ArtifactError, ConfigError, ContractError, ParityError
from requant.methods import METHODS
from requant.models.config import quantization_of
from requant.models.folder import INDEX_NAME
from requant.models.headers import read_headers
from requant.models.load import import_gptqmodel, load_model
from requant.models.tokenizer import load_tokenizer
from requant.stages import merge_fp16, quantize_base, train_adapter
from requant.stages.quantize_base import check_base_fidelity
from requant.store.manifest import describe
from tests.stages.conftest import STEPS, make_context

GROUP_SIZE = 64
CONVERSATION = [{"role": "user", "content": "What does sorted return?"}]


def quantize(
    method: str, folder: Path, base: Path, data: Path | None = None
) -> tuple[Path, dict[str, float]]:
    section = QuantizeBase(method=method, group_size=GROUP_SIZE, calibration_rows=16)
    context = make_context(folder)
    return context.out, quantize_base.execute(section, context, base=base, data=data)


@pytest.fixture(scope="module")
def gptq_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_data: Path) -> Path:
    return quantize("gptq", tmp_path_factory.mktemp("gptq"), tiny_base, tiny_data)[0]


@pytest.mark.parametrize(("method", "max_kl"), [("nf4", 0.2), ("int8", 0.01), ("gptq", 0.2)])
def test_a_checkpoint_close_to_the_original_and_the_same_bytes_twice(
    method: str, max_kl: float, tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    out, metrics = quantize(method, tmp_path / "one", tiny_base, tiny_data)
    again, _ = quantize(method, tmp_path / "two", tiny_base, tiny_data)
    assert describe(out) == describe(again)
    assert quantization_of(json.loads((out / "config.json").read_text())) == method
    assert 0 < metrics["kl"] < max_kl
    assert metrics["size_ratio"] < 1
    assert metrics["kl"] <= metrics["kl_p99"]
    assert metrics["kl_error"] > 0
    # Of layers so small, NF4's two tables of 1.1 kB are a third of the bits.
    bits, error = {"nf4": (6.0, 0.15), "int8": (8.4, 0.02), "gptq": (4.7, 0.2)}[method]
    assert metrics["bits_per_weight"] == pytest.approx(bits, abs=0.2)
    assert 0 < metrics["weight_error"] < error
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny_base / name).read_bytes()


def test_a_base_too_far_from_the_original_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    section = QuantizeBase(fidelity_max_kl=1e-9)
    with pytest.raises(
        ParityError,
        match=r"nf4 differs from the original by .* nats per token, limit "
        r"quantize_base.fidelity_max_kl=1e-09 .*set quantize_base.method to int8 or gptq, or train",
    ):
        quantize_base.execute(section, make_context(tmp_path), base=tiny_base, data=tiny_data)
    nan = {"kl": float("nan"), "loss_reference": 1.0, "loss_candidate": float("nan")}
    with pytest.raises(ParityError, match="KL against the original is nan"):
        check_base_fidelity(nan, section)


def test_a_base_without_data_is_measured_on_pythons_topics(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    out, metrics = quantize("nf4", tmp_path / "topics", tiny_base)
    _, held_out = quantize("nf4", tmp_path / "heldout", tiny_base, tiny_data)
    assert metrics.keys() == held_out.keys()
    assert 0 < metrics["kl"] < 0.2
    assert metrics["weight_error"] == held_out["weight_error"]
    assert load_tokenizer(out).apply_chat_template(CONVERSATION, tokenize=False)


@pytest.mark.parametrize("method", ["nf4", "gptq"])
def test_a_base_in_shards_leaves_no_stale_index(
    method: str, tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, base / shard, {"format": "pt"})
    index = {name: shard for shard, held in shards.items() for name in held}
    (base / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (base / "model.safetensors").unlink()
    out, metrics = quantize(method, tmp_path / "stage", base, tiny_data)
    assert (out / INDEX_NAME).exists() == (method == "gptq")
    if method == "gptq":
        named = json.loads((out / INDEX_NAME).read_text())["weight_map"]
        assert named == {name: header.file.name for name, header in read_headers(out).items()}
    assert metrics["kl"] < 0.2


def test_buffers_of_old_files_are_no_difference(tmp_path: Path, tiny_base: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    out, _ = quantize("nf4", tmp_path / "stage", base)
    assert not any("inv_freq" in name for name in load_file(out / "model.safetensors"))


@pytest.mark.parametrize("method", ["nf4", "gptq"])
def test_layers_that_cannot_be_quantized_get_advice_that_works(
    method: str, tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = GPT2Config(vocab_size=1024, n_embd=64, n_layer=2, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(base)
    with pytest.raises(ContractError, match=r"8 of its layers are Conv1D.*all-linear"):
        quantize(method, tmp_path / "stage", base, tiny_data)
    if method == "gptq":
        return
    steps = Optimisation(max_steps=2, batch_size=2, max_length=64)
    section = TrainAdapter(rank=2, target_modules=("all-linear",), optimisation=steps)
    adapter = make_context(tmp_path / "adapter")
    metrics = train_adapter.execute(section, adapter, base=base, data=tiny_data)
    assert metrics["adapted_share"] > 0
    merged = make_context(tmp_path / "merged")
    merge = {"original": base, "trained_on": base, "adapter": adapter.out, "data": tiny_data}
    loose = MergeFp16(rounding_max_kl_share=9, trained_max_kl=9)
    assert merge_fp16.execute(loose, merged, **merge)["merged_tensors"] == 8


def test_the_quantized_files_name_no_machine(gptq_base: Path) -> None:
    for name in ("config.json", "quantize_config.json"):
        text = (gptq_base / name).read_text()
        assert "/tmp" not in text
        assert "offload" not in text
        assert '"checkpoint_format": "gptq"' in text


def test_every_adapter_tensor_on_a_gptq_base_gets_a_gradient(gptq_base: Path) -> None:
    import torch

    import_gptqmodel()
    from peft import LoraConfig, get_peft_model

    model = load_model(gptq_base, "cpu", trainable=True)
    model = get_peft_model(
        model,
        # Random B as well as A: with B zero, A's gradient is rightly zero at the first step.
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    ids = torch.arange(16)[None]
    # The kernel transformers picks by itself gives no gradients after this.
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 8
    for name, parameter in trainable.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


TRAINS_ON = [
    (name, base)
    for name, row in METHODS.items()
    for base in ("nf4", "int8", "gptq")
    if row.trained and base not in row.refuses
]


@pytest.fixture(scope="module")
def quantized_bases(
    nf4: Path,
    gptq_base: Path,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    int8, _ = quantize("int8", tmp_path_factory.mktemp("int8"), tiny_base)
    return {"nf4": nf4, "int8": int8, "gptq": gptq_base}


@pytest.mark.parametrize(("method", "base"), TRAINS_ON)
def test_a_method_trains_on_every_base_its_row_does_not_refuse(
    method: str, base: str, quantized_bases: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    steps = STEPS.model_copy(update={"max_steps": 1})
    section = TrainAdapter(method=method, rank=4, optimisation=steps)
    context = make_context(tmp_path)
    folder = quantized_bases[base]
    metrics = train_adapter.execute(section, context, base=folder, data=tiny_data)
    assert metrics["steps"] == 1
    assert (context.out / "adapter_model.safetensors").exists()


def test_an_already_quantized_base_is_refused(tmp_path: Path, gptq_base: Path) -> None:
    with pytest.raises(ContractError, match=r"is quantized already \(gptq\); give the 16-bit"):
        quantize("nf4", tmp_path, gptq_base)


def test_gptq_without_calibration_text_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="needs calibration text"):
        quantize("gptq", tmp_path, tiny_base)


def test_an_incomplete_base_is_refused_before_work(tmp_path: Path, tiny_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="has no chat template"):
        quantize("nf4", tmp_path / "stage", base)
    assert not any((tmp_path / "stage" / "out").iterdir())
