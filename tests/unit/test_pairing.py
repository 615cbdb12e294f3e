"""The pairing contract, on folders as the libraries write them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from requant.errors import ArtifactError, ContractError, TerminalError
from requant.models.pairing import check_model_folder, check_pairing
from requant.models.tokenizer import chat_template, tokenizer_digest

HIDDEN, INTERMEDIATE, VOCABULARY = 32, 64, 8
DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.0.mlp.up_proj"


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.embed_tokens.weight": np.zeros((VOCABULARY, HIDDEN), np.float16),
        f"{UP}.weight": np.zeros((INTERMEDIATE, HIDDEN), np.float16),
        f"{DOWN}.weight": np.zeros((HIDDEN, INTERMEDIATE), np.float16),
    }
    save_file(tensors, folder / "model.safetensors")
    pieces = {piece: index for index, piece in enumerate(["a", "b", "ab", "c", "bc"])}
    merges = [("a", "b"), ("b", "c")]
    Tokenizer(models.BPE(pieces, merges)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "c"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def as_gptq(original: Path, intermediate: int = INTERMEDIATE) -> Path:
    """A GPTQ folder of the original's shapes, 4 bit, 32 weights per scale."""
    folder = original.with_name("gptq")
    shutil.copytree(original, folder)
    edit_json(
        folder / "config.json",
        intermediate_size=intermediate,
        quantization_config={"quant_method": "gptq", "bits": 4},
    )

    def pack(tensors: dict[str, np.ndarray]) -> None:
        for name, rows, columns in ((UP, HIDDEN, intermediate), (DOWN, intermediate, HIDDEN)):
            del tensors[f"{name}.weight"]
            tensors[f"{name}.qweight"] = np.zeros((rows // 8, columns), np.int32)
            tensors[f"{name}.qzeros"] = np.zeros((rows // 32, columns // 8), np.int32)
            tensors[f"{name}.scales"] = np.zeros((rows // 32, columns), np.float16)
            tensors[f"{name}.g_idx"] = np.zeros((rows,), np.int32)

    edit_weights(folder, pack)
    return folder


def test_a_quantized_copy_is_a_pair(original: Path) -> None:
    check_model_folder(original)
    check_pairing(original, as_gptq(original))


def test_an_output_layer_stored_beside_a_tied_embedding_is_no_difference(original: Path) -> None:
    quantized = as_gptq(original)
    head = np.zeros((VOCABULARY, HIDDEN), np.float16)
    edit_weights(original, lambda tensors: tensors.update({"lm_head.weight": head}))
    check_pairing(original, quantized)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: edit_json(folder / "config.json", architectures=["LlamaForCausalLM"]),
            ["architectures", "Qwen3ForCausalLM", "LlamaForCausalLM"],
        ),
        (
            lambda folder: edit_json(folder / "config.json", vocab_size=9),
            ["vocab_size: original 8, quantized 9"],
        ),
        (
            lambda folder: edit_json(folder / "config.json", tie_word_embeddings=False),
            ["tie_word_embeddings"],
        ),
        (
            lambda folder: edit_weights(folder, lambda tensors: tensors.pop(f"{UP}.qweight")),
            [f"missing in the quantized model: {UP}.weight"],
        ),
        (
            lambda folder: edit_weights(
                folder,
                lambda tensors: tensors.update({f"{UP}.bias": np.zeros(4, np.float16)}),
            ),
            [f"not in the original: {UP}.bias"],
        ),
        (
            lambda folder: edit_json(folder / "tokenizer_config.json", eos_token="b"),
            ["tokenizer digest", "special tokens"],
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0] }}"),
            ["tokenizer digest", "chat template"],
        ),
        (
            lambda folder: Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(
                str(folder / "tokenizer.json")
            ),
            ["tokenizer digest", "vocabulary"],
        ),
    ],
)
def test_every_difference_is_named(
    original: Path, change: Callable[[Path], object], said: list[str]
) -> None:
    quantized = as_gptq(original)
    change(quantized)
    with pytest.raises(ContractError) as caught:
        check_pairing(original, quantized)
    assert all(text in str(caught.value) for text in said)
    assert "quantize_base" in str(caught.value)


def test_a_padded_intermediate_size_is_recognised(original: Path) -> None:
    quantized = as_gptq(original, intermediate=INTERMEDIATE + 32)
    with pytest.raises(ContractError, match="intermediate_size was padded") as caught:
        check_pairing(original, quantized)
    assert f"{DOWN}.weight: original [32, 64], quantized [32, 96]" in str(caught.value)


def test_the_tokenizer_digest_ignores_how_it_is_written(original: Path) -> None:
    before = tokenizer_digest(original)
    path = original / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = ["a b", "b c"]
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content, indent=7, sort_keys=True))
    template = (original / "chat_template.jinja").read_text()
    (original / "chat_template.jinja").unlink()
    edit_json(
        original / "tokenizer_config.json",
        eos_token={"content": "c", "lstrip": False},
        chat_template=template,
    )
    assert tokenizer_digest(original) == before


def test_a_chat_template_is_a_text_or_the_default_of_several(original: Path) -> None:
    (original / "chat_template.jinja").unlink()
    tool = {"name": "tool_use", "template": "t"}
    for value, expected in (
        (None, None),
        ("a", "a"),
        ([tool, {"name": "default", "template": "d"}], "d"),
        ([tool], None),
    ):
        edit_json(original / "tokenizer_config.json", chat_template=value)
        assert chat_template(original) == expected
    for malformed in (7, {"default": "d"}, ["d"], [tool, {"name": "default"}], [{"name": 7}]):
        edit_json(original / "tokenizer_config.json", chat_template=malformed)
        with pytest.raises(ArtifactError, match="expected a text, or a list of objects with name"):
            chat_template(original)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            ArtifactError,
            "config.json: is missing",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), ArtifactError, "no *.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), ArtifactError, "has no tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), ArtifactError, "chat template"),
        (
            lambda folder: edit_json(folder / "config.json", vocab_size=4),
            ContractError,
            "token ids reach 4",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"model.embed_tokens.weight": "model.safetensors", '
                '"lm_head.weight": "model-2.safetensors"}}'
            ),
            ArtifactError,
            "names lm_head.weight, which no *.safetensors",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").rename(folder / "x.safetensors")
                and (folder / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"lm_head.weight": "model-2.safetensors"}}'
                )
            ),
            ArtifactError,
            "names files of which none is beside it",
        ),
    ],
)
def test_an_incomplete_folder_is_refused(
    original: Path, change: Callable[[Path], object], error: type[TerminalError], said: str
) -> None:
    change(original)
    with pytest.raises(error) as caught:
        check_model_folder(original)
    assert said in str(caught.value)


@pytest.mark.parametrize("kept", [4, 20, -1])
def test_a_weights_file_cut_short_is_refused(original: Path, kept: int) -> None:
    path = original / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match="is cut short"):
        check_model_folder(original)
