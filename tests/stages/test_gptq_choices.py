"""What each choice of GPTQ does to a real tiny model: other bytes, one layout, or a refusal."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from requant.config.quantizing import RequantizeGptq
from requant.data.samples import read_rows
from requant.errors import ConfigError, ContractError
from requant.models.load import load_model
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibration import read_pool, sample_calibration
from requant.quantization.settings import dynamic_rules, settings_of
from requant.stages import requantize_gptq
from tests.stages.conftest import SilentReporter, make_context

PLAIN = {
    "group_size": 64,
    "calibration_rows": 16,
    "general_share": 0.0,
    "mse": 0.0,
    "fidelity_rows": 4,
}

Made = tuple[Path, dict[str, float], list[str]]
"""Folder, figures, and what was said."""


def requantize(folder: Path, model: Path, data: Path, **fields: Any) -> Made:
    section = RequantizeGptq(**{**PLAIN, **fields})
    context = make_context(folder)
    metrics = requantize_gptq.execute(section, context, model=model, data=data)
    assert isinstance(context.reporter, SilentReporter)
    return context.out, metrics, context.reporter.messages


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_data: Path) -> Made:
    return requantize(tmp_path_factory.mktemp("plain"), tiny_base, tiny_data)


def layout(folder: Path) -> dict[str, Any]:
    return {
        name: (tuple(tensor.shape), tensor.dtype)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


@pytest.mark.parametrize(
    "choice",
    [
        {"symmetric": False},
        {"mse": 3.1},
        {"gptaq_alpha": 0.25},
        {"act_group_aware": False},
        {"desc_act": True},
        {"damp_percent": 0.5},
        {"general_share": 0.5},
    ],
    ids=lambda choice: next(iter(choice)),
)
def test_another_choice_gives_other_bytes_and_the_same_layout(
    choice: dict[str, Any], tmp_path: Path, plain: Made, tiny_base: Path, tiny_data: Path
) -> None:
    out, metrics, _ = requantize(tmp_path, tiny_base, tiny_data, **choice)
    assert layout(out) == layout(plain[0])
    name = "model.safetensors"
    assert (out / name).read_bytes() != (plain[0] / name).read_bytes()
    assert 0 < metrics["kl"] < 3 * plain[1]["kl"]


@pytest.mark.parametrize(
    ("choice", "closer", "larger"),
    [
        ({"bits": 2}, False, False),
        ({"bits": 3}, False, False),
        ({"bits": 8}, True, True),
        ({"group_size": -1}, False, False),
        # In a model this small finer groups change nothing that could be measured.
        ({"group_size": 16}, None, True),
    ],
    ids=["2 bit", "3 bit", "8 bit", "one group", "groups of 16"],
)
def test_other_sizes_load_and_more_bits_are_closer(
    choice: dict[str, Any],
    closer: bool | None,
    larger: bool,
    tmp_path: Path,
    plain: Made,
    tiny_base: Path,
    tiny_data: Path,
) -> None:
    out, metrics, _ = requantize(tmp_path, tiny_base, tiny_data, fidelity_max_kl=9.0, **choice)
    assert load_model(out, "cpu") is not None
    assert closer is None or (metrics["kl"] < plain[1]["kl"]) == closer
    assert (metrics["size_ratio"] > plain[1]["size_ratio"]) == larger


def test_too_little_calibration_is_refused_before_work(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        requantize(tmp_path, tiny_base, tiny_data, calibration_rows=1, calibration_length=16)
    text = str(caught.value)
    assert text.startswith("requantize_gptq: 1 texts of calibration have 16 tokens, expected at ")
    assert "at least 128 (requantize_gptq.calibration_min_tokens)" in text
    assert "raise requantize_gptq.calibration_rows or requantize_gptq.calibration_length" in text
    assert not any((tmp_path / "out").iterdir())
    assert not any((tmp_path / "work").iterdir())


def test_calibration_says_what_it_is(
    tmp_path: Path, plain: Made, tiny_base: Path, tiny_data: Path
) -> None:
    out, metrics, said = requantize(tmp_path, tiny_base, tiny_data, general_share=0.25)
    record = json.loads((out / "calibration.json").read_text())
    assert (len(record["rows"]), len(record["general"])) == (12, 4)
    assert (metrics["calibration_rows"], metrics["calibration_general"]) == (12, 4)
    assert record["tokens"] == metrics["calibration_tokens"] > plain[1]["calibration_tokens"]
    lengths = record["lengths"]
    assert 10 < lengths["least"] <= lengths["median"] <= lengths["most"] <= 512
    assert said[0].startswith("quantizing to 4 bit on 12 conversations and 4 general texts; ")
    assert "calibration.json" not in json.loads((out / "config.json").read_text())


def test_rows_taken_already_and_nearly_measured_ones_are_passed_over(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    rows = read_rows(data / "train.jsonl")[:3]
    longest = max(
        read_rows(data / "heldout.jsonl"), key=lambda row: len(row["messages"][-1]["content"])
    )
    longest["messages"][-1]["content"] += " Indeed."
    lines = [json.dumps(row) + "\n" for row in (*rows, rows[0], longest)]
    (data / "train.jsonl").write_text("".join(lines))
    calibration = sample_calibration(load_tokenizer(tiny_base), read_pool(data), 9, seed=0)
    assert len(calibration.rows) == 3
    assert str(calibration.dropped) == (
        "1 that are measured on, 1 taken already, 0 that spell control tokens"
    )


def test_general_text_is_neither_measured_on_nor_trained_on(tiny_data: Path) -> None:
    general = {row["text"] for row in read_rows(tiny_data / "general.jsonl")}
    old = {row["text"] for row in read_rows(tiny_data / "evaluation" / "old_perplexity.jsonl")}
    assert len(general) == 256
    assert general.isdisjoint(old)


def test_a_hessian_that_cannot_be_inverted_is_damped_and_said(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    _, metrics, said = requantize(
        tmp_path,
        tiny_base,
        tiny_data,
        calibration_rows=1,
        calibration_length=32,
        calibration_min_tokens=1,
        damp_percent=1e-12,
    )
    assert metrics["layers_damped"] > 0
    [line] = [line for line in said if "took more damping" in line]
    assert line.startswith(f"{metrics['layers_damped']:.0f} layers took more damping than damp")
    assert "block 0 " in line
    tries = [line for line in said if "Hessian is not positive definite; damping " in line]
    # Layers of one input share a Hessian.
    assert 0 < len(tries) <= metrics["layers_damped"]
    assert all("damping 0 failed, 0.99 ok, " in line for line in tries)


def test_the_candidate_closest_to_16_bit_is_shipped(
    tmp_path: Path, plain: Made, tiny_base: Path, tiny_data: Path
) -> None:
    poor: dict[str, Any] = {"group_size": -1, "mse": 8.0}
    out, metrics, said = requantize(tmp_path, tiny_base, tiny_data, candidates=[poor, {"mse": 0.0}])
    name = "model.safetensors"
    assert (out / name).read_bytes() == (plain[0] / name).read_bytes()
    assert metrics["candidate"] == 2
    kls = [
        line.rpartition("KL ")[2] for line in said if line.startswith("candidate ") and "KL" in line
    ]
    assert float(kls[0]) > float(kls[1]) == pytest.approx(metrics["candidate_kl"], rel=1e-3)
    assert said.index("candidate 2 is shipped") < said.index("measuring fidelity")
    assert not any((tmp_path / "work").glob("candidate-*"))


def test_candidates_need_rows_to_choose_by(
    tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    with pytest.raises(ContractError) as caught:
        requantize(tmp_path, tiny_base, tiny_data, calibration_rows=60, candidates=[{"mse": 2.0}])
    assert "are left to choose by after 60 that calibrate, expected at least 8" in str(caught.value)


def test_auto_round_writes_the_same_layout_and_is_a_candidate(
    tmp_path: Path, plain: Made, tiny_base: Path, tiny_data: Path
) -> None:
    rounded = {"method": "auto_round", "auto_round_iterations": 20}
    out, metrics, _ = requantize(tmp_path / "alone", tiny_base, tiny_data, **rounded)
    assert layout(out) == layout(plain[0])
    assert 0 < metrics["kl"] < metrics["rtn_kl"]
    written = json.loads((out / "config.json").read_text())["quantization_config"]
    assert written["meta"]["quantizer"][0].startswith("auto-round:")
    poor = {"method": "auto_round", "auto_round_iterations": 1, "group_size": -1}
    again, chosen, _ = requantize(
        tmp_path / "tried", tiny_base, tiny_data, candidates=[poor, rounded]
    )
    assert chosen["candidate"] == 2
    name = "model.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


def test_auto_round_takes_no_choice_that_is_gptqs_own() -> None:
    for candidates in ([], [{"method": "auto_round"}]):
        fields = {"desc_act": True, "method": "gptq" if candidates else "auto_round"}
        with pytest.raises(ValueError, match=r"auto_round has no desc_act=true or gptaq_alpha=0;"):
            RequantizeGptq.model_validate({**fields, "candidates": candidates})


def test_overrides_that_nothing_could_follow_are_refused() -> None:
    override = {"modules": ["q_proj"], "act_group_aware": True}
    for fields, said in (
        ({"method": "auto_round"}, "overrides: are GPTQ's, and nothing is rounded by it"),
        ({"candidates": [{"method": "auto_round"}]}, "overrides: are GPTQ's, and nothing"),
        ({"desc_act": True}, "act_group_aware: true with desc_act=true are two orders"),
    ):
        with pytest.raises(ValueError, match=said):
            RequantizeGptq.model_validate({**fields, "overrides": [override]})
    mixed = [{"desc_act": True}, {"method": "auto_round"}]
    section = RequantizeGptq.model_validate({"candidates": mixed, "overrides": [override]})
    orders = [
        dynamic_rules(settings_of(fields), ())["+:.*\\.q_proj$"]
        for fields in (section, section.model_copy(update=section.candidates[0].chosen()))
    ]
    assert orders == [{"act_group_aware": True}, {}]


def test_some_layers_are_rounded_otherwise_in_the_same_layout(
    tmp_path: Path, plain: Made, tiny_base: Path, tiny_data: Path
) -> None:
    searched, _, _ = requantize(tmp_path / "all", tiny_base, tiny_data, mse=2.4)
    override = {"modules": ["q_proj"], "mse": 2.4}
    out, _, _ = requantize(tmp_path / "some", tiny_base, tiny_data, overrides=[override])
    assert layout(out) == layout(plain[0])
    ours, neither, both = (
        load_file(folder / "model.safetensors") for folder in (out, plain[0], searched)
    )
    # Of the first block, whose inputs are alike however the others are rounded.
    block = "model.layers.0.self_attn"
    assert torch.equal(ours[f"{block}.q_proj.scales"], both[f"{block}.q_proj.scales"])
    assert torch.equal(ours[f"{block}.k_proj.scales"], neither[f"{block}.k_proj.scales"])
    assert not torch.equal(both[f"{block}.k_proj.scales"], neither[f"{block}.k_proj.scales"])
    assert "dynamic" not in json.loads((out / "config.json").read_text())["quantization_config"]
