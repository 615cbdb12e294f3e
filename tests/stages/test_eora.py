"""A LoRA beside the 4-bit model gives back what rounding took, and is part of the model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from requant.comparison.folders import size_ratio
from requant.evaluation.loading import shared_loads
from requant.models.config import read_model_config
from requant.models.load import corrected, load_model
from requant.quantization.dequantize import read_quantized
from requant.quantization.eora import write_correction
from tests.stages.conftest import SilentReporter
from tests.stages.test_gptq_choices import Made, requantize

COARSE = {"bits": 2, "fidelity_max_kl": 9.0, "fidelity_max_rtn_ratio": 9.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_data: Path) -> list[Made]:
    """Rank 0 (none), 4, and one beyond every layer's smaller side."""
    folder = tmp_path_factory.mktemp("eora")
    return [
        requantize(folder / str(rank), tiny_base, tiny_data, eora_rank=rank, **COARSE)
        for rank in (0, 4, 128)
    ]


def test_a_higher_rank_is_closer_to_16_bit_and_larger(made: list[Made], tiny_base: Path) -> None:
    kls = [metrics["kl"] for _, metrics, _ in made]
    assert kls[0] > 1.2 * kls[1] > 5 * kls[2]
    bits = [metrics.get("correction_bits_per_weight", 0) for _, metrics, _ in made]
    assert bits[0] == 0 < bits[1]
    assert bits[2] == pytest.approx(32 * bits[1])
    sizes = [size_ratio(out, tiny_base) for out, _, _ in made]
    assert sizes == sorted(sizes)
    assert len({metrics["bits_per_weight"] for _, metrics, _ in made}) == 1
    weights = {(out / "model.safetensors").read_bytes() for out, _, _ in made}
    assert len(weights) == 1


def test_with_full_rank_nothing_of_the_rounding_is_left(made: list[Made], tiny_base: Path) -> None:
    out = made[2][0]
    packed, original = read_quantized(out), load_file(tiny_base / "model.safetensors")
    lora = load_file(out / "eora" / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    stem = f"base_model.model.{name}"
    added = lora[f"{stem}.lora_B.weight"].float() @ lora[f"{stem}.lora_A.weight"].float()
    error = original[f"{name}.weight"].float() - packed.weight(f"{name}.weight")
    assert (added - error).norm() < 0.02 * error.norm()


def test_it_is_loaded_with_the_model_and_named_in_its_card(made: list[Made]) -> None:
    plain, small = made[0][0], made[1][0]
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        bare = load_model(small, "cpu")(ids).logits
        assert torch.equal(bare, corrected(load_model(plain, "cpu"), plain)(ids).logits)
        assert not torch.equal(bare, corrected(load_model(small, "cpu"), small)(ids).logits)
    assert "The LoRA in `eora/` is part of it" in (small / "README.md").read_text()
    assert "eora" not in (plain / "README.md").read_text()
    assert read_model_config(small)["quantization_config"]["bits"] == 2


def test_an_evaluation_that_loads_it_twice_corrects_it_once(made: list[Made]) -> None:
    folder = made[1][0]
    ids = torch.arange(1, 20)[None]
    load = shared_loads("cpu", ())
    with torch.no_grad():
        expected = corrected(load_model(folder, "cpu"), folder)(ids).logits
        first = load(folder, None)
        again = load(folder, None)
        assert first is not again
        assert torch.equal(first(ids).logits, expected)
        assert torch.equal(again(ids).logits, expected)
    assert sum("lora_A" in name for name, _ in first.named_parameters()) == sum(
        "lora_A" in name for name, _ in again.named_parameters()
    )
    assert first.base_model.model is not again.base_model.model


def test_to_a_layer_that_no_text_reached_nothing_is_added(
    made: list[Made], tiny_base: Path, tmp_path: Path
) -> None:
    quantized = tmp_path / "quantized"
    shutil.copytree(made[0][0], quantized)
    write_correction(tiny_base, quantized, [], 2, device="cpu", reporter=SilentReporter())
    tensors = load_file(quantized / "eora" / "adapter_model.safetensors")
    assert tensors
    assert not any(tensor.any() for tensor in tensors.values())
