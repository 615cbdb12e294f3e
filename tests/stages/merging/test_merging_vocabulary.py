"""Embeddings that are tied, resized or trained in single rows."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from requant.errors import ContractError
from requant.merging import plan_merge, scaled
from tests.support.adapters import adapted, qwen, save_adapter, save_model
from tests.support.merges import logits, lora, merge, tensors


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
