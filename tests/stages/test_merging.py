"""The merge is the formula in fp32, rounded once; what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from requant.errors import ContractError, ParityError
from requant.merging import (
    LowRankUpdate,
    check_updates_fit,
    merge_folder,
    merge_update,
    read_updates,
)

NAME = "model.layers.0.self_attn.q_proj.weight"


def factors(magnitude: bool = False, scale: float = 2.0) -> tuple[torch.Tensor, LowRankUpdate]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 8, generator=generator)
    a, b = torch.randn(4, 8, generator=generator), torch.randn(12, 4, generator=generator)
    length = torch.rand(12, generator=generator) + 0.5 if magnitude else None
    return weight, LowRankUpdate(a, b, scale, length)


def test_lora_is_w_plus_s_b_a() -> None:
    weight, update = factors()
    expected = weight.double() + 2.0 * update.b.double() @ update.a.double()
    torch.testing.assert_close(merge_update(weight, update).double(), expected, rtol=0, atol=1e-5)


def test_dora_rows_have_the_trained_length() -> None:
    weight, update = factors(magnitude=True)
    torch.testing.assert_close(merge_update(weight, update).norm(dim=1), update.magnitude)


def test_it_is_rounded_once(tmp_path: Path) -> None:
    weight, update = factors(scale=0.01)
    weight = weight.bfloat16()
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    other = torch.randn(5).bfloat16()
    save_file(
        {NAME: weight, "model.norm.weight": other}, base / "model.safetensors", {"format": "pt"}
    )
    metrics = merge_folder(base, {NAME: update}, torch.bfloat16, out)
    merged = load_file(out / "model.safetensors")
    exact = weight.double() + update.scale * update.b.double() @ update.a.double()
    assert torch.equal(merged[NAME], exact.float().bfloat16())
    assert torch.equal(merged["model.norm.weight"], other)
    assert metrics["merged_tensors"] == 1
    assert 0 < metrics["rounding_ratio"] < 1
    assert 0 < metrics["changed_share"] <= 1


def test_an_adapter_of_another_shape_or_architecture_is_refused(tmp_path: Path) -> None:
    weight, update = factors()
    save_file({NAME: weight[:6].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ContractError, match=r"q_proj.weight is \[6, 8\] in the original.*\[12, 8\]"
    ):
        check_updates_fit(tmp_path, {NAME: update})
    with pytest.raises(
        ContractError, match=r"1 of 1 modules are not in the original, e.g. stranger"
    ):
        check_updates_fit(tmp_path, {"stranger": update})


def test_a_merged_nan_is_refused(tmp_path: Path) -> None:
    weight, update = factors()
    update.b[3, 1] = float("nan")
    save_file({NAME: weight}, tmp_path / "model.safetensors")
    with pytest.raises(ParityError, match=f"{NAME} is not finite"):
        merge_folder(tmp_path, {NAME: update}, torch.bfloat16, tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_rslora": True}, "use_rslora=True changes what merging means"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out are not supported"),
    ],
)
def test_adapters_this_formula_does_not_fit_are_refused(tmp_path: Path, change, text) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **change}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    _, update = factors()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": update.a, f"{prefix}.lora_B.weight": update.b}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ContractError, match=text):
        read_updates(tmp_path)


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    _, update = factors()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{prefix}.lora_A.weight": update.a}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ContractError, match="lacks lora_A, lora_B"):
        read_updates(tmp_path)
