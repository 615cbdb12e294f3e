"""requantize_gptq on a real tiny model: measured, calibrated apart, refused over the limit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from requant.comparison.folders import size_ratio
from requant.config.quantizing import RequantizeGptq
from requant.data.samples import read_rows
from requant.errors import ConfigError, ContractError, ParityError
from requant.figures import figure
from requant.models.provenance import weights_digest
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibration import (
    MIN_TOKENS,
    Dropped,
    encode_calibration,
    read_pool,
    sample_calibration,
)
from requant.stages import requantize_gptq
from requant.store.manifest import describe, hash_file
from tests.stages.conftest import make_context

ROWS = 16


def requantize(
    folder: Path, model: Path, data: Path, seed: int = 0, **fields: Any
) -> tuple[Path, dict[str, float]]:
    section = RequantizeGptq(
        **{"group_size": 64, "calibration_rows": ROWS, "fidelity_rows": 4, **fields}
    )
    context = make_context(folder, seed=seed)
    return context.out, requantize_gptq.execute(section, context, model=model, data=data)


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_same_bytes_twice_and_its_figures(
    tmp_path: Path, tiny_base: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    out, metrics = requantize(tmp_path / "one", tiny_base, tiny_data)
    again, _ = requantize(tmp_path / "two", tiny_base, tiny_data)
    assert describe(out) == describe(again)
    assert not any(elsewhere.iterdir())
    assert 0 < metrics["kl"] < 0.2
    assert metrics["agreement"] > 0.5
    change = metrics["loss_candidate"] - metrics["loss_reference"]
    assert metrics["ln_ppl_ratio"] == pytest.approx(change)
    assert abs(change) < 0.2
    assert metrics["kl"] / metrics["rtn_kl"] == pytest.approx(metrics["rtn_ratio"])
    # 4 bits, and of each 64 weights a scale of 16 and a zero point of 4; g_idx is 32 for an input.
    assert 4 + 20 / 64 < metrics["bits_per_weight"] < 5
    assert metrics["size_ratio"] < 1
    assert (metrics["calibration_rows"], metrics["calibration_general"]) == (ROWS - 5, 5)
    assert metrics["calibration_tokens"] > ROWS
    assert len(json.loads((out / "calibration.json").read_text())["rows"]) == ROWS - 5


def test_a_card_tells_lineage_data_licence_and_figures(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    model = shutil.copytree(tiny_base, tmp_path / "model")
    commit = "0123456789" * 4
    origin = {"license": "other", "license_name": "tiny terms", "license_link": "LICENSE.md"}
    origin |= {"repo": "owner/tiny", "revision": commit}
    (model / "origin.json").write_text(json.dumps(origin))
    (model / "README.md").write_text("# The base's own card, which is true of the base alone\n")
    out, metrics = requantize(tmp_path / "stage", model, tiny_data)
    card = (out / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(front) == {
        "base_model": "owner/tiny",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "tiny terms",
        "license_link": "LICENSE.md",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["requant", "gptq", "4-bit"],
    }
    calibration = json.loads((out / "calibration.json").read_text())
    for told in (
        f"https://huggingface.co/owner/tiny) at `{commit}`",
        "`other` (tiny terms), LICENSE.md",
        f"`{weights_digest(model)}`",
        f"Training: {len(read_rows(tiny_data / 'train.jsonl'))} rows",
        f"sha256 `{hash_file(tiny_data / 'heldout.jsonl')}`",
        f"{ROWS} texts, {metrics['calibration_tokens']:.0f} tokens",
        f"sha256 `{calibration['sha256']}`",
        f"| {figure(metrics['kl'])} | {figure(metrics['kl_error'])} |",
        f"| {figure(metrics['rtn_kl'])} |",
    ):
        assert told in body
    modules = json.loads((out / "quantization.json").read_text())["modules"]
    worst = max(modules, key=lambda name: modules[name])
    assert f"- `{worst}` {modules[worst]:.1%}" in body
    assert "/tmp" not in card
    assert "base's own card" not in card


def test_a_card_says_that_nothing_names_the_base(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    out, _ = requantize(tmp_path, tiny_base, tiny_data)
    card = (out / "README.md").read_text()
    assert "base_model" not in card
    assert "license" not in card
    assert "Licence of the base: not stated by it: ask whoever published the base" in card


def test_generation_configuration_and_template_are_kept(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    from transformers import GenerationConfig

    model = shutil.copytree(tiny_base, tmp_path / "model")
    generation = json.loads((model / "generation_config.json").read_text())
    generation |= {"temperature": 0.3, "do_sample": True, "max_new_tokens": 7}
    (model / "generation_config.json").write_text(json.dumps(generation))
    out, _ = requantize(tmp_path / "stage", model, tiny_data)
    kept = GenerationConfig.from_pretrained(out)
    assert (kept.temperature, kept.do_sample, kept.max_new_tokens) == (0.3, True, 7)
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    asked = [{"role": "user", "content": "What does sorted return?"}]
    templates = [
        load_tokenizer(folder).apply_chat_template(asked, tokenize=False) for folder in (model, out)
    ]
    assert templates[0] == templates[1]


def test_a_master_is_as_large_as_what_is_served(tmp_path: Path, tiny_base: Path) -> None:
    master = tmp_path / "master"
    shutil.copytree(tiny_base, master)
    tensors = load_file(master / "model.safetensors")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(tensors, master / "model.safetensors", metadata={"format": "pt"})
    assert size_ratio(tiny_base, master) == pytest.approx(size_ratio(tiny_base, tiny_base), 0.01)


def test_the_seed_picks_the_calibration_rows(tiny_base: Path, tiny_data: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    zero, same, one = (
        sample_calibration(tokenizer, read_pool(tiny_data), 8, seed) for seed in (0, 0, 1)
    )
    assert zero == same
    assert zero.texts != one.texts


def test_more_bits_are_closer(tmp_path: Path, tiny_base: Path, tiny_data: Path) -> None:
    _, four = requantize(tmp_path / "4", tiny_base, tiny_data)
    _, eight = requantize(tmp_path / "8", tiny_base, tiny_data, bits=8, desc_act=True)
    assert eight["kl"] < four["kl"] / 10
    assert eight["size_ratio"] > four["size_ratio"]


def test_rows_that_are_measured_on_are_not_calibrated_on(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    train, heldout = read_rows(data / "train.jsonl"), read_rows(data / "heldout.jsonl")
    shouted = json.loads(json.dumps(heldout[0]))
    shouted["messages"][-1]["content"] = shouted["messages"][-1]["content"].upper() + "  \n"
    document = {"query": "what", "choices": [train[0]["messages"][-1]["content"]]}
    write_rows(data / "train.jsonl", [shouted, *train[:3]])
    write_rows(data / "evaluation" / "extra.jsonl", [document])
    tokenizer = load_tokenizer(tiny_base)
    calibration = sample_calibration(tokenizer, read_pool(data), 4, seed=0)
    assert sorted(calibration.rows) == [2, 3]
    assert calibration.dropped == Dropped(measured=2)
    write_rows(data / "train.jsonl", [shouted])
    with pytest.raises(ContractError, match="all 1 training rows are also held out or ev"):
        sample_calibration(tokenizer, read_pool(data), 4, seed=0)


def test_a_group_size_that_does_not_divide_is_refused_before_work(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        requantize(tmp_path, tiny_base, tiny_data, group_size=128)
    text = str(caught.value)
    assert (
        "group_size=128 does not divide in_features=64 of model.layers.*.mlp.gate_proj (2), "
        in text
    )
    assert "model.layers.*.self_attn.v_proj (2); valid for this model: 16, 32, 64" in text
    assert not any((tmp_path / "out").iterdir())
    assert not any((tmp_path / "work").iterdir())


def test_a_model_over_the_limit_is_refused_with_its_figures(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    with pytest.raises(ParityError) as caught:
        requantize(tmp_path, tiny_base, tiny_data, fidelity_max_kl=1e-9)
    text = str(caught.value)
    assert "requantize_gptq.fidelity_max_kl=1e-09" in text
    assert "raise requantize_gptq.calibration_rows" in text


@pytest.mark.parametrize("kl", [0.51, float("nan"), float("inf")])
def test_the_limit_refuses_what_is_not_a_number(kl: float) -> None:
    figures = {"kl": kl, "loss_reference": 1.0, "loss_candidate": 2.0, "calibration_tokens": 9.0}
    with pytest.raises(ParityError, match=r"loss 1 in 16 bit, 2 quantized; 9 calibration tokens"):
        requantize_gptq.check_fidelity(figures, RequantizeGptq(fidelity_max_kl=0.5))


def test_a_calibration_that_does_harm_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    with pytest.raises(ParityError) as caught:
        requantize(tmp_path, tiny_base, tiny_data, fidelity_max_rtn_ratio=1e-3)
    text = str(caught.value)
    assert "times as much as rounding to nearest without calibration" in text
    assert "limit requantize_gptq.fidelity_max_rtn_ratio=0.001" in text
    assert "raise requantize_gptq.calibration_rows" in text


def test_a_broken_weight_is_refused(tmp_path: Path, tiny_base: Path, tiny_data: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="q_proj"):
        requantize(tmp_path / "stage", model, tiny_data)


def test_an_untied_output_layer_stays_as_it_is(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(model / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file({**tensors, "lm_head.weight": head}, model / "model.safetensors", {"format": "pt"})
    out, metrics = requantize(tmp_path / "stage", model, tiny_data)
    assert load_file(out / "model.safetensors")["lm_head.weight"].equal(head)
    assert metrics["kl"] < 0.2


def test_cuts_of_calibration_text_are_counted(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    texts = ["short", "a longer text of several words that is cut, and cut again " * 4]
    whole = tokenizer(texts[1], add_special_tokens=False)["input_ids"]
    taken = encode_calibration(tokenizer, texts, 20)
    assert taken.ids == (tuple(whole[:20]),)
    assert (taken.tokens, taken.cut, taken.too_short) == (20, 1, 1)
    assert taken.lost_tokens == len(whole) - 20
    assert str(taken) == (
        f"calibration: 20 tokens; 1 texts cut, {len(whole) - 20} tokens lost, 1 texts of at most "
        f"{MIN_TOKENS} tokens left out"
    )
    with pytest.raises(ContractError, match="none of 1 texts has more than 10 tokens"):
        encode_calibration(tokenizer, texts[:1], 20)


def test_what_rounding_takes_of_the_gain_is_measured_and_held_to_a_limit(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    before = shutil.copytree(tiny_base, tmp_path / "before")
    draw = torch.Generator().manual_seed(0)

    def noisy(weight: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(weight.shape, generator=draw)
        return (weight + weight.float().std() * drawn).to(weight.dtype)

    weights = {
        name: noisy(weight) for name, weight in load_file(tiny_base / "model.safetensors").items()
    }
    save_file(weights, before / "model.safetensors", metadata={"format": "pt"})
    section = RequantizeGptq(group_size=64, calibration_rows=ROWS, fidelity_rows=8)
    context = make_context(tmp_path / "stage")
    metrics = requantize_gptq.execute(
        section, context, model=tiny_base, data=tiny_data, base=before
    )
    assert metrics["gain"] > 10 * metrics["gain_lost"]
    assert metrics["gain_excess"] < 0
    worse = metrics | {"gain_lost": 0.3, "gain": 0.2, "gain_excess": 0.01}
    with pytest.raises(
        ParityError,
        match=r"rounding to 4 bit costs 0.3 nats per token of held-out text, where the night had "
        r"won 0.2, limit requantize_gptq.fidelity_max_gain_lost=1 of it .*set eora_rank",
    ):
        requantize_gptq.check_fidelity(worse, section)
