import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from requant.config.base import PrepareBase
from requant.errors import ConfigError
from requant.models.origin import origin_of
from requant.preflight.base import base_problems, door_problems
from requant.stages import prepare_base
from requant.store.manifest import describe
from tests.stages.conftest import MICRO_BASE, make_context
from tests.support.chain import micro_config

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <|x|> = {{ 1 }}?"},
    {"role": "assistant", "content": "One."},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "Two."},
]


def from_folder(path: Path) -> PrepareBase:
    return PrepareBase.model_validate({"source": {"kind": "folder", "path": path}})


def from_hub(revision: str = "main", repo: str = "owner/tiny") -> PrepareBase:
    source = {"kind": "hub", "repo": repo, "revision": revision}
    return PrepareBase.model_validate({"source": source})


def hub_cache(root: Path, model: Path, commit: str, repo: str = "owner/tiny") -> None:
    """Lay a model folder out as huggingface_hub's cache does: blobs, refs, links in snapshots."""
    home = root / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    (home / "blobs").mkdir()
    for path in model.iterdir():
        blob = home / "blobs" / f"blob-{path.name}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and huggingface_hub told to stay offline."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_the_model_is_an_ordinary_folder_that_loads(tiny_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="auto")
    linears = {
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(size % 64 == 0 for size in linears)
    names = {path.name for path in tiny_base.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names


def test_training_beats_a_model_that_knows_nothing_but_the_vocabulary(tmp_path: Path) -> None:
    import math

    context = make_context(tmp_path)
    metrics = prepare_base.execute(PrepareBase.model_validate(MICRO_BASE), context)
    curve = [values["loss"] for _, values in context.reporter.points]
    assert metrics["loss"] < math.log(MICRO_BASE["source"]["vocab_size"]) - 0.5
    assert curve == sorted(curve, reverse=True)
    assert context.reporter.steps[-1] == (40, 40, "steps")


def test_the_same_seed_gives_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    again = make_context(tmp_path / "again")
    prepare_base.execute(PrepareBase.model_validate(MICRO_BASE), again)
    assert describe(again.out) == describe(tiny_base)
    other = make_context(tmp_path / "other", seed=1)
    prepare_base.execute(PrepareBase.model_validate(MICRO_BASE), other)
    assert describe(other.out) != describe(tiny_base)


def test_the_chat_template_renders_prefixes_and_marks_the_answers(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    for count in range(1, len(MESSAGES)):
        part = tokenizer.apply_chat_template(MESSAGES[:count], tokenize=False)
        assert whole.startswith(part)
        if MESSAGES[count]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(
                MESSAGES[:count], tokenize=False, add_generation_prompt=True
            )
            assert whole.startswith(prompt)
    assert whole.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    encoded = tokenizer.apply_chat_template(
        MESSAGES, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(marked) == "One.<|im_end|>Two.<|im_end|>"


def test_the_tokenizer_keeps_every_text(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for text in ("def f(x):\n\treturn  x\n", "naïve — 日本語 🙂", " leading , and trailing "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    marks = tokenizer("<|im_start|><|im_end|><|endoftext|>")["input_ids"]
    assert len(marks) == 3
    assert tokenizer.decode(marks, skip_special_tokens=True) == ""


def test_a_folder_is_copied_without_pickles_links_and_hidden_files(
    tiny_base: Path, tmp_path: Path
) -> None:
    hub_cache(tmp_path / "cache", tiny_base, "a" * 40)
    snapshot = next((tmp_path / "cache").glob("*/snapshots/*"))
    for name in ("pytorch_model.bin", "optimizer.pt", "state.pkl", ".hidden.json", "manifest.json"):
        (snapshot / name).write_text("{}")
    context = make_context(tmp_path)
    metrics = prepare_base.execute(from_folder(snapshot), context)
    assert describe(context.out) == describe(tiny_base)
    assert metrics["parameters"] > 100_000
    assert prepare_base.content_digests(from_folder(snapshot)) == prepare_base.content_digests(
        from_folder(tiny_base)
    )


def test_one_changed_byte_of_a_folder_changes_its_digest(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    before = prepare_base.content_digests(from_folder(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert prepare_base.content_digests(from_folder(copy)) != before


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks weights (*.safetensors"),
        ("tokenizer.json", "lacks a tokenizer"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(
    tiny_base: Path, tmp_path: Path, removed: str, named: str
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    (copy / removed).unlink()
    with pytest.raises(ConfigError, match=re.escape(named)):
        prepare_base.content_digests(from_folder(copy))


def test_a_missing_shard_and_a_quantized_model_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-00002-of-00002.safetensors"}}))
    weights = (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match=r"lacks model-00002-of-00002\.safetensors"):
        prepare_base.execute(from_folder(copy), make_context(tmp_path))
    index.unlink()
    with pytest.raises(ConfigError, match=r"lacks shards: model-00002-of-00002\.safetensors"):
        prepare_base.execute(from_folder(copy), make_context(tmp_path / "again"))
    weights.rename(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"is quantized \(gptq\); the base must be the 16-bit"):
        prepare_base.content_digests(from_folder(copy))
    with pytest.raises(ConfigError, match="is not a folder"):
        prepare_base.content_digests(from_folder(tmp_path / "nowhere"))


def test_a_hub_model_is_taken_from_the_cache_when_offline(
    tiny_base: Path, tmp_path: Path, offline_cache: Path
) -> None:
    hub_cache(offline_cache, tiny_base, "b" * 40)
    context = make_context(tmp_path)
    prepare_base.execute(from_hub(), context)
    origin = json.loads((context.out / "origin.json").read_text())
    assert origin == {"repo": "owner/tiny", "revision": "b" * 40}
    (context.out / "origin.json").unlink()
    assert describe(context.out) == describe(tiny_base)
    digests = prepare_base.content_digests(from_hub())
    assert digests["commit"] == "b" * 40
    assert prepare_base.content_digests(from_hub("b" * 40)) == digests


CARD = """---
license: other
license_name: tiny-terms
license_link: https://example.org/terms
base_model: somebody/else
repo: somebody/else
---
# A base's own card
"""


def test_the_licence_of_a_bases_card_travels_and_the_card_does_not(
    tiny_base: Path, tmp_path: Path, offline_cache: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    before = prepare_base.content_digests(from_folder(base))
    (base / "README.md").write_text(CARD)
    assert prepare_base.content_digests(from_folder(base)) != before
    licence = {
        "license": "other",
        "license_name": "tiny-terms",
        "license_link": "https://example.org/terms",
    }
    folder = make_context(tmp_path / "folder")
    prepare_base.execute(from_folder(base), folder)
    assert json.loads((folder.out / "origin.json").read_text()) == licence
    hub_cache(offline_cache, base, "b" * 40)
    hub = make_context(tmp_path / "hub_stage")
    prepare_base.execute(from_hub(), hub)
    known = {"repo": "owner/tiny", "revision": "b" * 40, **licence}
    assert json.loads((hub.out / "origin.json").read_text()) == known
    assert not any((context.out / "README.md").exists() for context in (folder, hub))
    # A model of requant's own as the next base: what it knew of its origin stays.
    again = make_context(tmp_path / "again")
    prepare_base.execute(from_folder(hub.out), again)
    assert json.loads((again.out / "origin.json").read_text()) == known


@pytest.mark.parametrize(
    "card",
    [
        b"no front matter",
        b"---\nlicense: [a, b]\n---\n",
        b"---\nlicense: *alias\n---\n",
        b'---\nlicense: "mit\\nbase_model: x"\nlicense_link: "https://user:secret@host/"\n---\n',
        b"\xff\xfe---",
    ],
)
def test_a_card_that_says_nothing_usable_is_no_origin(card: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert origin_of(tmp_path) == {}


def test_a_hub_model_that_is_not_cached_is_refused_offline(offline_cache: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"owner/absent@main is not in the local .*HF_HUB_OFFLINE"
    ):
        prepare_base.content_digests(from_hub(repo="owner/absent"))


def test_a_hub_model_without_a_template_is_known_before_the_night(
    tiny_base: Path, tmp_path: Path, offline_cache: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    hub_cache(offline_cache, base, "b" * 40)
    source = {"kind": "hub", "repo": "owner/tiny"}
    night = micro_config(tmp_path / "state", prepare_base={"source": source})
    (problem,) = base_problems(night)
    assert str(problem).startswith(
        "prepare_base.source.repo: owner/tiny has no chat template, which quantize_base and"
    )


def test_a_hub_model_is_checked_before_its_weights_are_fetched(
    tiny_base: Path, tmp_path: Path, offline_cache: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text()) | {"auto_map": {"AutoAny": "evil.Any"}}
        (base / name).write_text(json.dumps(content))
    (base / "model.safetensors").unlink()
    hub_cache(offline_cache, base, "b" * 40)
    source: dict[str, Any] = {"kind": "hub", "repo": "owner/tiny"}
    night = micro_config(tmp_path / "state", prepare_base={"source": source})
    assert [str(problem).split(":")[1] for problem in door_problems(night)] == [" owner/tiny"] * 2
    left = micro_config(
        tmp_path / "state", prepare_base={"source": source, "leave_out": ["auto_map"]}
    )
    assert list(door_problems(left)) == []


def test_weights_that_are_no_numbers_are_refused_by_tensor_and_file(
    tiny_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_base, tmp_path / "base")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :2] = float("inf")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    context = make_context(tmp_path / "stage")
    with pytest.raises(ConfigError) as caught:
        prepare_base.execute(from_folder(copy), context)
    text = str(caught.value)
    assert text.startswith(f"prepare_base.source.path: {copy}: 2 tensors hold NaN or infinity: ")
    assert "model.layers.1.mlp.up_proj.weight of model.safetensors (2 of 8192 numbers)" in text
    assert "model.norm.weight of model.safetensors (1 of 64 numbers)" in text
    assert not any(context.out.iterdir())


def test_matrices_of_zeros_are_refused_unless_they_are_meant(
    tiny_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_base, tmp_path / "base")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].zero_()
    # A bias or a norm of zeros is nothing strange.
    tensors["model.norm.weight"].zero_()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    context = make_context(tmp_path / "stage")
    with pytest.raises(ConfigError) as caught:
        prepare_base.execute(from_folder(copy), context)
    assert str(caught.value) == (
        f"prepare_base.source.path: {copy}: 1 matrices hold nothing but zeros: "
        "model.layers.1.mlp.up_proj.weight of model.safetensors; copy the weights anew, or, where "
        "the model is meant so, set prepare_base.zero_matrices=allow"
    )
    assert not any(context.out.iterdir())
    meant = from_folder(copy).model_copy(update={"zero_matrices": "allow"})
    prepare_base.execute(meant, context)
    assert (context.out / "config.json").exists()
    assert meant.key_fields() == from_folder(copy).key_fields()
