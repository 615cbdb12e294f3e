"""The door: what people's folders hold beside, instead of or without a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from requant.config.base import PrepareBase
from requant.errors import ConfigError
from requant.models.base_folder import check_base, inspect_base
from requant.models.folder import INDEX_NAME, stored_dtype
from requant.models.load import load_model
from requant.models.tokenizer import load_tokenizer
from requant.stages import prepare_base
from requant.store import describe
from tests.stages.conftest import make_context

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LAYER = "model.layers.0.self_attn"


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields; None removes one."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def in_shards(folder: Path) -> None:
    """Cut the weights into two shards without an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, folder / FIRST, {"format": "pt"})
    save_file({name: tensors[name] for name in names[5:]}, folder / SECOND, {"format": "pt"})
    (folder / "model.safetensors").unlink()


def prepared(folder: Path, work: Path) -> tuple[Path, dict[str, float], list[str]]:
    """Run prepare_base on a folder; return the artifact, its figures and what was said."""
    context = make_context(work)
    section = PrepareBase.model_validate({"source": {"kind": "folder", "path": folder}})
    metrics = prepare_base.execute(section, context)
    return context.out, metrics, context.reporter.messages


def test_an_ordinary_base_passes_without_a_word(tiny_base: Path) -> None:
    found = inspect_base(tiny_base, "x")
    assert (found.problems, found.notes) == ((), ())
    assert found.parameters == sum(p.numel() for p in load_model(tiny_base, "cpu").parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: edit_weights(f, lambda t: t.pop(f"{LAYER}.q_proj.weight")),
            rf"lacks 1 tensors of Qwen3ForCausalLM, which would be .*: {LAYER}.q_proj.weight;",
        ),
        (
            lambda f: edit_weights(
                f, lambda t: t.update({f"{LAYER}.q_norm.weight": torch.ones(3)})
            ),
            rf"1 tensors have another shape .*: {LAYER}.q_norm.weight: stored \[3\], expected",
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="qwen9"),
            r"model_type='qwen9' \(Qwen3ForCausalLM\) is not known to transformers 5.*install a",
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="x", auto_map={"AutoConfig": "c.C"}),
            r"requant does not run the model's own code \(auto_map\)",
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="t5", architectures=["T5Model"]),
            r"T5Model \(model_type='t5'\) is not a causal language model",
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="bart"),
            "is not a causal language model",
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="gemma3", text_config={}),
            "is a model of several modalities",
        ),
        (lambda f: edit_json(f / "config.json", hidden_size="many"), "transformers cannot"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: is not JSON"),
        (
            lambda f: (f / "generation_config.json").write_text('{"max_length": "x"}'),
            r"generation_config.json: max_length='x': expected a whole number; correct or remove",
        ),
        (
            lambda f: (f / "config.json").write_text("[1]"),
            "holds a list, expected an object .*; copy it anew",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b'{"a":{}}'),
            "its header is damaged",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            "is cut short",
        ),
        (
            lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'),
            "transformers cannot load the tokenizer",
        ),
        (
            lambda f: edit_json(f / "tokenizer_config.json", eos_token=None, pad_token=None),
            r"the tokenizer has no eos_token.*e.g. '<\|im_end\|>', the eos_token_id=\d+ of gen",
        ),
        (
            lambda f: edit_json(f / "tokenizer_config.json", eos_token="<never seen>"),
            r"has 1 tokens past the embedding .*vocab_size=1024\): '<never seen>' \(1024\)",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "consolidated.00.safetensors"),
            r"lacks weights that transformers loads: consolidated\*.safetensors name",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            "it is an adapter; give the model it was trained on",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
            "lacks model.safetensors: rename weights.safetensors",
        ),
    ],
)
def test_what_cannot_be_a_base_is_said_in_one_line(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    for problem in check_base(folder, "prepare_base.source.path: base"):
        assert problem.startswith("prepare_base.source.path: base")
        assert "\n" not in problem
    with pytest.raises(ConfigError, match=said):
        prepared(folder, tmp_path / "stage")
    assert not any((tmp_path / "stage" / "out").iterdir())


def test_all_problems_are_named_at_once(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    problems = check_base(folder, "here")
    assert ["model.norm.weight" in problems[0], "eos_token" in problems[1]] == [True, True]


def test_a_tokenizer_without_padding_token_is_no_problem(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    assert load_tokenizer(folder).pad_token is None
    assert check_base(folder, "x") == []


def test_weights_in_other_formats_and_adapters_stay_behind(
    folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    twice = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(twice, folder / "consolidated.safetensors")
    save_file({"base_model.model.x": torch.ones(1)}, folder / "adapter_model.safetensors")
    # transformers would fetch this base instead of loading the model that lies here.
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    (folder / INDEX_NAME).write_text('{"weight_map": {"x": "gone.safetensors"}}')
    out, metrics, said = prepared(folder, tmp_path / "stage")
    assert describe(out) == describe(tiny_base)
    assert metrics["parameters"] == inspect_base(tiny_base, "x").parameters
    assert stored_dtype(out) == torch.bfloat16
    assert said[0].startswith("left out 4 files (")
    assert all(name in said[0] for name in ("adapter_config", "adapter_model", "consolidated"))
    assert said[0].endswith("the weights are model.safetensors")


def test_shards_without_index_get_one(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    in_shards(folder)
    out, _, said = prepared(folder, tmp_path / "stage")
    assert said == [f"made {INDEX_NAME} from the headers of the shards"]
    ours, theirs = (load_model(path, "cpu").state_dict() for path in (tiny_base, out))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (folder / SECOND).unlink()
    assert f"lacks shards: {SECOND}" in check_base(folder, "x")[0]


def test_superfluous_tensors_are_named_and_travel(folder: Path, tmp_path: Path) -> None:
    extra = {f"{LAYER}.rotary_emb.inv_freq": torch.ones(4), "score.weight": torch.ones(2, 64)}
    edit_weights(folder, lambda tensors: tensors.update(extra))
    out, metrics, said = prepared(folder, tmp_path / "stage")
    assert said == [
        "2 tensors are not part of the network and never used: "
        f"{LAYER}.rotary_emb.inv_freq, score.weight"
    ]
    assert extra.keys() <= load_file(out / "model.safetensors").keys()
    assert metrics["parameters"] == sum(p.numel() for p in load_model(out, "cpu").parameters())


def test_the_stored_dtype_is_that_of_most_weights(folder: Path) -> None:
    norms = {"model.layers.0.input_layernorm.weight": torch.ones(64)}
    edit_weights(folder, lambda tensors: tensors.update(norms))
    assert stored_dtype(folder) == torch.bfloat16


def sentencepiece_model(path: Path) -> int:
    """Write a BPE model with byte fallback, as Llama 2's; return its number of pieces."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    words = ["▁t", "he", "▁the", "in", "on", "▁a", *"▁etaoinshrdlucm"]
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [(word, 1) for word in words]
    for rank, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, type=kind, score=-float(rank))
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())
    return len(pieces)


@pytest.fixture
def llama2(folder: Path) -> Path:
    """The tiny base with a sentencepiece file alone."""
    (folder / "tokenizer.json").unlink()
    sentencepiece_model(folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_sentencepiece_file_alone_becomes_a_tokenizer(llama2: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    from requant.models.pairing import check_model_folder
    from requant.models.tokenizer import token_ids, tokenizer_digest

    out, _, said = prepared(llama2, tmp_path / "stage")
    assert said == ["made tokenizer.json from the tokenizer's older files"]
    before, after = load_tokenizer(llama2), load_tokenizer(out)
    for text in ("the tin on a", " é\n", "<s>the</s>"):
        assert before(text)["input_ids"] == after(text)["input_ids"]
    assert token_ids(out)["▁the"] == before.convert_tokens_to_ids("▁the")
    check_model_folder(out)
    (out / "tokenizer.model").unlink()
    assert tokenizer_digest(out)


def test_a_sentencepiece_file_without_its_package_is_refused(
    llama2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requant.models.base_folder._has_sentencepiece", lambda: False)
    assert check_base(llama2, "x") == [
        "x: tokenizer.model is read by the package sentencepiece, which is not installed: "
        "pip install sentencepiece, or save the tokenizer as tokenizer.json"
    ]
