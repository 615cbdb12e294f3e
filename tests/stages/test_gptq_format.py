"""What is written is AutoGPTQ's format: an independent reader and the kernels read the same W."""

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from requant.config.base import PrepareBase
from requant.errors import ParityError
from requant.models.headers import read_headers
from requant.models.load import import_gptqmodel, load_model
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibration import encode_calibration, read_pool, sample_calibration
from requant.quantization.dequantize import read_quantized
from requant.quantization.gptq import quantize_gptq
from requant.quantization.gptq_layout import dequantized, read_parts
from requant.quantization.gptq_range import range_faults
from requant.quantization.kernel_check import check_kernel
from requant.quantization.settings import GptqSettings
from requant.stages import prepare_base
from tests.stages.conftest import MICRO_BASE, SilentReporter, make_context
from tests.support.gptq_layout import Array, codes_of, layers_of

WIDE = MICRO_BASE["source"] | {
    **{"hidden_size": 128, "intermediate_size": 256, "layers": 1, "steps": 8}
}
"""One block, wide enough for every group size."""
ALL = list(product((2, 3, 4, 8), (32, 64, 128, -1), (True, False), (False, True)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = make_context(tmp_path_factory.mktemp("wide"))
    prepare_base.execute(PrepareBase.model_validate({"source": WIDE}), context)
    return context.out


@pytest.fixture(scope="module")
def texts(base: Path, tiny_data: Path) -> tuple[str, ...]:
    return sample_calibration(load_tokenizer(base), read_pool(tiny_data), 16, 0).texts


def quantize(base: Path, folder: Path, texts: tuple[str, ...], **fields: Any) -> Path:
    context = make_context(folder)
    quantize_gptq(
        base,
        context.out,
        encode_calibration(load_tokenizer(base), texts, 64).ids,
        GptqSettings(**{"group_size": 64, **fields}),
        device="cpu",
        work=context.work,
        reporter=SilentReporter(),
    )
    return context.out


def multiplied_with(model: Any, module: str) -> Array:
    """W of a layer, float64 [out, in], by what the layer makes of the unit vectors."""
    import torch

    layer = model.get_submodule(module)
    with torch.inference_mode():
        found: Array = layer(torch.eye(layer.in_features)).T.double().numpy()
    return found


@pytest.mark.parametrize(("bits", "group_size", "symmetric", "desc_act"), ALL)
def test_the_kernel_multiplies_with_what_an_independent_reader_reads(
    bits: int,
    group_size: int,
    symmetric: bool,
    desc_act: bool,
    base: Path,
    texts: tuple[str, ...],
    tmp_path: Path,
) -> None:
    out = quantize(
        base,
        tmp_path,
        texts,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        desc_act=desc_act,
        # Which signs scales have, too, where they are searched.
        mse=2.4 * symmetric,
    )
    read = layers_of(out, bits)
    assert len(read) == 7
    headers, below = read_headers(out), 1
    model = load_model(out, "cpu")
    original = load_file(base / "model.safetensors")
    for module, weight in read.items():
        # The kernel rounds s (q - z) to float16, once.
        assert np.array_equal(multiplied_with(model, module), weight.astype(np.float16)), module
        assert np.array_equal(dequantized(read_parts(module, headers), bits, below).numpy(), weight)
        before = original[f"{module}.weight"].double().numpy()
        error = np.linalg.norm(weight - before) / np.linalg.norm(before)
        assert error < 4 * 2.0**-bits, module


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (3, False), (8, True)])
def test_gptqmodel_loads_what_is_written_and_reads_the_same(
    bits: int, symmetric: bool, base: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    out = quantize(base, tmp_path, texts, bits=bits, symmetric=symmetric, desc_act=True)
    import_gptqmodel()
    import torch
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(out), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16)
    for module, weight in layers_of(out, bits).items():
        layer = model.model.get_submodule(module)
        vars(layer).pop("dequantize_weight", None)
        kernel = layer.dequantize_weight().T.double().numpy()
        assert np.array_equal(kernel, weight.astype(np.float16)), module


VALUES = "model.layers.0.self_attn.v_proj"


def planted(base: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """Copy a model, its value projection changed in place."""
    model = shutil.copytree(base, folder)
    tensors = load_file(model / "model.safetensors")
    change(tensors[f"{VALUES}.weight"])
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def positive(weight: Any) -> None:
    """Leave no negative weight in the four rows of a word."""
    weight[:4] = weight[:4].abs()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_of_positive_weights_have_grids_that_hold_them_and_every_reader_reads(
    bits: int, symmetric: bool, base: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    model = planted(base, tmp_path / "model", positive)
    out = quantize(model, tmp_path / "stage", texts, bits=bits, symmetric=symmetric)
    weight = layers_of(out, bits)[VALUES]
    assert np.array_equal(
        multiplied_with(load_model(out, "cpu"), VALUES), weight.astype(np.float16)
    )
    before = load_file(model / "model.safetensors")[f"{VALUES}.weight"].double().numpy()
    error = np.linalg.norm(weight[:4] - before[:4]) / np.linalg.norm(before[:4])
    assert error < 4 * 2.0**-bits


def test_a_zero_point_of_0_is_refused_by_name(
    base: Path, texts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requant.quantization.gptq.mended_grids", nullcontext)
    model = planted(base, tmp_path / "model", positive)
    with pytest.raises(ParityError) as caught:
        quantize(model, tmp_path / "stage", texts, symmetric=False)
    # Of neighbours in a word the lowest alone shows it: it takes the 1 from the next.
    text = "at least 2 of 128 zero points are 0, stored as -1, which other readers take for 16"
    assert f"{VALUES}: {text}: set symmetric to true" in str(caught.value)
    assert not (tmp_path / "stage" / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1e-5, r"{}: \d+ of 128 scales are below 4.8e-07, too small for float16: weights so small"),
        (1e-9, r"{}: 128 of 128 scales are below 4.8e-07, too small for float16"),
        (1e6, r"{}: weights of up to .*e\+04 are beyond float16, which ends at 65504"),
        (1e8, r"{}: 128 of 128 scales are NaN or infinite: .* raise calibration_rows or damp"),
    ],
)
def test_scales_that_float16_does_not_hold_are_refused_by_name(
    factor: float, text: str, base: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    model = planted(base, tmp_path / "model", lambda weight: weight.mul_(factor))
    with pytest.raises(ParityError, match=text.format(re.escape(VALUES))):
        quantize(model, tmp_path / "stage", texts)


def test_the_smallest_scale_costs_what_rounding_costs(
    base: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    model = planted(base, tmp_path / "model", lambda weight: weight.mul_(1e-3))
    out = quantize(model, tmp_path / "stage", texts)
    before = load_file(model / "model.safetensors")[f"{VALUES}.weight"].double().numpy()
    weight = layers_of(out, 4)[VALUES]
    assert np.linalg.norm(weight - before) / np.linalg.norm(before) < 0.25


def test_a_group_of_zeros_is_held(base: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    model = planted(base, tmp_path / "model", lambda weight: weight[:2].zero_())
    out = quantize(model, tmp_path / "stage", texts)
    assert not layers_of(out, 4)[VALUES][:2].any()


def test_a_negative_scale_is_as_good_as_a_positive_one() -> None:
    import torch

    parts = {
        "scales": torch.tensor([[-0.5, 0.5, -1e-7, -1e4] * 2], dtype=torch.float16),
        "qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),
    }
    small, large = range_faults(parts, bits=4, below=1)
    assert small.startswith("2 of 8 scales are below 4.8e-07")
    assert large.startswith("weights of up to 8e+04 are beyond float16")


def test_a_layer_that_multiplies_with_something_else_is_refused_by_name(
    base: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    quantized = read_quantized(quantize(base, tmp_path, texts, desc_act=True))
    model = load_model(quantized.folder, "cpu")
    check_kernel(model, quantized)
    layer = model.get_submodule(VALUES)
    layer.scales[1, 3] *= 1.01
    with pytest.raises(ParityError) as caught:
        check_kernel(model, quantized)
    text = str(caught.value)
    assert text.startswith("GPTQ: 1 of 7 layers multiply with other weights than their files hold")
    assert f"\n{VALUES}: off by up to " in text


def test_three_bits_run_through_the_words() -> None:
    words = np.array([[0b11 << 30, 0b1, 0]], dtype=np.uint32).view(np.int32)
    assert list(codes_of(words, 3)[0]) == [0] * 10 + [7] + [0] * 21
