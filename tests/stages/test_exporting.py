"""`requant export`: the same integers, read by others than who wrote them; refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, TokenType
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from requant.cli import app
from requant.comparison.batches import Batch, file_batches
from requant.errors import ConfigError, ContractError, ParityError
from requant.exporting.command import FORMATS, Exported, check_request, export_model
from requant.exporting.compressed import write_compressed
from requant.exporting.gguf_file import write_gguf
from requant.exporting.readers import check_exact
from requant.models.folder import copy_tokenizer
from requant.models.headers import read_headers
from requant.models.tokenizer import load_tokenizer, tokenizer_content, tokenizer_digest
from requant.quantization.calibration import encode_calibration
from requant.quantization.gptq import quantize_gptq
from requant.quantization.settings import GptqSettings
from requant.store import Store
from requant.store.manifest import hash_file
from requant.store.objects import publish
from tests.stages.conftest import SilentReporter, make_context
from tests.support.gptq_layout import layers_of

NETWORKS: dict[str, dict[str, Any]] = {
    # Scales are searched with both signs, and query heads share those of keys.
    "llama": {"group_size": 32, "mse": 2.4},
    # Zero points; biases of the projections.
    "qwen2": {"group_size": 64, "symmetric": False},
    # One scale a row of 8 bits; norms of query and key, heads wider than their share.
    "qwen3": {"group_size": -1, "bits": 8},
}
KINDS = {
    "llama": {"gguf": "Q4_0", "compressed-tensors": "W4A16"},
    "qwen2": {"gguf": "Q5_0", "compressed-tensors": "W4A16_asymmetric"},
    "qwen3": {"gguf": "Q8_0", "compressed-tensors": "W8A16"},
}
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_k": 7, "eos_token_id": [0, 1]}


def make_network(kind: str, tokenizer: Path, folder: Path) -> Path:
    """Write a network of random weights, large enough that its answers differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"tie_word_embeddings": kind == "llama", "initializer_range": 0.2},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "rms_norm_eps": 1e-5},
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
            assert "norm" in name or "bias" in name
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    (folder / "generation_config.json").write_text(json.dumps(SAMPLING))
    origin = {"repo": "owner/tiny", "revision": "0" * 40, "license": "apache-2.0"}
    (folder / "origin.json").write_text(json.dumps(origin))
    return folder


def quantize(base: Path, folder: Path, **settings: Any) -> Path:
    context = make_context(folder)
    text = "A dictionary maps keys to values, and a list is a sequence of values. " * 4
    quantize_gptq(
        base,
        context.out,
        encode_calibration(load_tokenizer(base), [text] * 4, 64).ids,
        GptqSettings(**settings),
        device="cpu",
        work=context.work,
        reporter=SilentReporter(),
    )
    return context.out


@pytest.fixture(scope="module")
def models(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Network to the folder of its GPTQ model; beside it the 16-bit one, named base."""
    found = {}
    for kind, settings in NETWORKS.items():
        folder = tmp_path_factory.mktemp(kind)
        base = make_network(kind, tiny_base, folder / "base")
        found[kind] = quantize(base, folder, **settings)
    return found


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    """A GPTQ Llama that a test may change."""
    return shutil.copytree(models["llama"], tmp_path / "model")


def export(*words: object, fails: int = 0) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, words), "--device", "cpu"])
    assert result.exit_code == fails, result.output
    return " ".join(result.output.split())


def loaded(folder: Path, kind: str) -> dict[str, Any]:
    """Weights of the layers as transformers has them, by their names; float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    options: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    if kind == "gguf":
        config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
        config.head_dim = 32
        options = {"gguf_file": "model.gguf", "config": config}
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return {name: tensor.float().numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def batches(models: dict[str, Path]) -> list[Batch]:
    return file_batches(models["llama"], None, 2)


def write(model: Path, kind: str, out: Path, batches: list[Batch], **options: Any) -> Exported:
    return export_model(
        model, kind, out, batches, device="cpu", reporter=SilentReporter(), **options
    )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_export_holds_the_weights_of_the_gptq_model_and_answers_as_it(
    network: str, kind: str, models: dict[str, Path], batches: list[Batch], tmp_path: Path
) -> None:
    model, out = models[network], tmp_path / "deep" / "out"
    base = model.parent / "base"
    found = write(model, kind, out, batches, against=base)
    assert found.kinds == {KINDS[network][kind]: 14}
    record = json.loads((out / "export.json").read_text())
    assert record["layers_exact"] == 14
    measured = record["fidelity"]
    # The GPTQ kernel rounds each weight to float16, and so does the other package.
    assert abs(measured["gptq"]["kl"]) < 1e-5
    assert measured["original"]["kl"] > 1e-4
    assert measured["original"]["kl"] == pytest.approx(
        measured["gptq_against_original"]["kl"], abs=1e-4
    )
    weights = loaded(out, kind)
    for module, weight in layers_of(model, NETWORKS[network].get("bits", 4)).items():
        # The other package multiplies in the dtype of the scales.
        expected = weight.astype(np.float32 if kind == "gguf" else np.float16)
        assert np.array_equal(weights[f"{module}.weight"], expected), module
    for name, tensor in load_file(base / "model.safetensors").items():
        if "proj.weight" not in name:
            assert np.array_equal(weights[name], tensor.float().numpy()), name
    files = {path.name for path in out.iterdir()} - {"export.json"}
    assert record["files"] == {name: hash_file(out / name) for name in files}
    assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_gguf_tells_what_llama_cpp_asks(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["llama"]
    write_gguf(model, tmp_path, SilentReporter())
    fields = GGUFReader(tmp_path / "model.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    template = (model / "chat_template.jinja").read_text()
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "apache-2.0",
        "general.file_type": 2,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 7,
        "llama.block_count": 2,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 5e4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": load_tokenizer(model).eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": template,
    }
    assert {name: found[name] for name in expected} == expected
    assert "tokenizer.ggml.eot_token_id" in found
    content = tokenizer_content(model)
    ids = {text: number for number, text in enumerate(found["tokenizer.ggml.tokens"])}
    assert all(ids[text] == number for text, number in content["model"]["vocab"].items())
    kinds = found["tokenizer.ggml.token_type"]
    assert all(kinds[token["id"]] == TokenType.CONTROL for token in content["added_tokens"])
    assert len(found["tokenizer.ggml.merges"]) == len(content["model"]["merges"])


def test_compressed_tensors_keeps_what_lies_beside_the_weights(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model, out = models["qwen3"], tmp_path
    write_compressed(model, out, SilentReporter())
    assert tokenizer_digest(out) == tokenizer_digest(model)
    for name in ("generation_config.json", "chat_template.jinja", "origin.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert not (out / "quantize_config.json").exists()
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == ["lm_head"]
    weights = settings["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["strategy"], weights["symmetric"]) == (8, "channel", True)


def test_the_command_takes_a_digest_verifies_it_and_says_figures(
    model: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "state")
    (tmp_path / "state" / "actions").mkdir(parents=True)
    digest = publish(store, "model", model).digest
    words = ("--format", "gguf", "--sequences", 2, "--state", tmp_path / "state")
    text = tmp_path / "text.txt"
    text.write_text("One piece.")
    assert "holds one piece of text; standard errors take two at least" in export(
        digest[:8], *words, "--text", text, "--out", tmp_path / "out", fails=2
    )
    said = export(digest[:8], *words, "--out", tmp_path / "out")
    assert "14 quantized layers (14 as Q4_0), each read back bit for bit; " in said
    assert re.search(r"against the GPTQ model: KL \S+ ± \S+ nats per token, agreement 1", said)
    assert "expected one artifact in" in export("abcd", *words, "--out", tmp_path / "x", fails=2)
    assert "MODEL no/such: is no folder; give one of a GPTQ model, or at least 4 hex" in export(
        "no/such", *words, "--out", tmp_path / "x", fails=2
    )
    path = store.object_path(digest) / "config.json"
    path.write_text(path.read_text() + "\n")
    assert "config.json" in export(digest[:8], *words, "--out", tmp_path / "x", fails=2)
    assert not (tmp_path / "x").exists()


def test_shards_stay_shards(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    places = {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        part = {name: value for name, value in tensors.items() if (".1." in name) == (number == 2)}
        save_file(part, model / shard, {"format": "pt"})
        places |= dict.fromkeys(part, shard)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for kind, format in FORMATS.items():
        (tmp_path / kind).mkdir()
        format.write(model, tmp_path / kind, SilentReporter())
        assert check_exact(model, tmp_path / kind, kind) == 14
    out = tmp_path / "compressed-tensors"
    written = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(written.values()) == set(places.values())
    assert (
        written["model.layers.1.mlp.up_proj.weight_packed"]
        == places["model.layers.1.mlp.up_proj.qweight"]
    )
    assert written.keys() == read_headers(out).keys()
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        content = json.loads((model / name).read_text())
        change(content)
        (model / name).write_text(json.dumps(content))

    return apply


def config(**fields: Any) -> Callable[[Path], None]:
    return edit("config.json", lambda content: content.update(fields))


def scattered(model: Path) -> None:
    """Give two layers the groups of desc_act."""
    path = model / "model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors):
        if name.endswith("v_proj.g_idx"):
            tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path, {"format": "pt"})


MORE = {
    **{"id": 1024, "content": "<|more|>", "special": True, "normalized": False},
    **{"single_word": False, "lstrip": False, "rstrip": False},
}
GPT4 = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
OTHERS = {"type": "Sequence", "pretokenizers": [GPT4, BYTES]}
REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "gguf",
        config(model_type="gemma3_text"),
        r"model_type='gemma3_text'; expected one of llama, qwen2, qwen3, which are written as "
        r"GGUF: export --format compressed-tensors, or convert the 16-bit model with",
    ),
    ("gguf", config(hidden_act="gelu"), r"hidden_act='gelu'; expected 'silu', the one that"),
    ("gguf", config(attention_bias=True), r"attention_bias=True; expected False, the one"),
    (
        "gguf",
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        r"rope_type='yarn'; expected 'default'",
    ),
    (
        "gguf",
        edit("tokenizer.json", lambda content: content["model"].update(byte_fallback=True)),
        r"tokenizer.json: is a sentencepiece tokenizer; expected byte-level BPE",
    ),
    (
        "gguf",
        edit("tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"})),
        r"normalizer=\{'type': 'Lowercase'\}; llama.cpp leaves text as it is: convert the 16-bit",
    ),
    (
        "gguf",
        edit("tokenizer.json", lambda content: content.update(pre_tokenizer=OTHERS)),
        r"these rules are none of llama.cpp's gpt-2, smollm, qwen2, llama-bpe, and with others",
    ),
    ("gguf", lambda model: (model / "tokenizer.json").unlink(), r"tokenizer"),
    (
        "gguf",
        edit("tokenizer.json", lambda content: content["added_tokens"].append(MORE)),
        r"holds 1 tokens beyond the 1024 rows of the model's embedding, the first '<\|more\|>'; ",
    ),
    (
        "gguf",
        scattered,
        r"the groups of 2 layers are spread over their inputs \(model.layers.0.self_attn.v_proj, "
        r"model.layers.1.self_attn.v_proj\), as desc_act=true makes them, and GGUF has no place",
    ),
    ("compressed-tensors", scattered, r"spread over .* and compressed-tensors \(0.20\) has no"),
    (
        "compressed-tensors",
        lambda model: (model / "eora").mkdir(),
        r"eora: is a LoRA that is part of the model, and an export holds the weights alone; quant",
    ),
    (
        "gguf",
        edit("config.json", lambda content: content.pop("quantization_config")),
        r"is not quantized; expected a GPTQ model, whose integers an export writes down: give the",
    ),
]


@pytest.mark.parametrize(("kind", "change", "told"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name_and_leaves_nothing(
    kind: str, change: Callable[[Path], None], told: str, model: Path, tmp_path: Path
) -> None:
    change(model)
    with pytest.raises(ContractError, match=told):
        write(model, kind, tmp_path / "deep" / "out", [])
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_words_that_cannot_be_meant_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    model, out = models["llama"], tmp_path / "out"
    nowhere = tmp_path / "nowhere"
    for words, told in (
        ((model, model, None), "holds something already; give a new folder"),
        ((model, out, model), r"is quantized \(gptq\); give the 16-bit model MODEL was made of"),
        ((model, out, nowhere), "--against .*nowhere: is no folder"),
        ((nowhere, out, None), "MODEL .*nowhere: is no folder"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_request(words[0], "gguf", words[1], words[2])
    other = shutil.copytree(model.parent / "base", tmp_path / "other")
    edit("tokenizer.json", lambda content: content["added_tokens"].append(MORE))(other)
    with pytest.raises(ContractError, match="have different tokenizers; give the 16-bit model"):
        check_request(model, "gguf", out, other)


def test_an_export_over_the_limit_is_refused_and_leaves_nothing(
    models: dict[str, Path], batches: list[Batch], tmp_path: Path
) -> None:
    with pytest.raises(
        ParityError,
        match=r"gguf: differs from the GPTQ model by \S+ nats per token, limit --max-kl -1, though "
        r"all 14 layers hold its weights; .* or serve the GPTQ folder itself",
    ):
        write(models["llama"], "gguf", tmp_path / "out", batches, max_kl=-1)
    assert not any(tmp_path.iterdir())


def test_a_flipped_bit_is_found_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["llama"]
    for kind, format in FORMATS.items():
        (tmp_path / kind).mkdir()
        format.write(model, tmp_path / kind, SilentReporter())
        assert check_exact(model, tmp_path / kind, kind) == 14
    reader = GGUFReader(tmp_path / "gguf" / "model.gguf", "r+")
    blocks = {tensor.name: tensor.data for tensor in reader.tensors}
    blocks["blk.1.ffn_down.weight"][0, 5] ^= 1
    path = tmp_path / "compressed-tensors" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight_packed"][0, 0] ^= 1
    save_file(tensors, path, {"format": "pt"})
    for kind in FORMATS:
        with pytest.raises(ParityError, match=r"1 of 14 layers are read back .*1\.mlp\.down_proj"):
            check_exact(model, tmp_path / kind, kind)
