"""What is written is AutoGPTQ's format: an independent reader and the kernels read the same W."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from requant.config.base import PrepareBase
from requant.models.load import import_gptqmodel, load_model
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibration import sample_calibration
from requant.quantization.gptq import quantize_gptq
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
    return sample_calibration(load_tokenizer(base), tiny_data, 16, 0).texts


def quantize(base: Path, folder: Path, texts: tuple[str, ...], **fields: Any) -> Path:
    context = make_context(folder)
    settings: dict[str, Any] = {
        **{"bits": 4, "group_size": 64, "symmetric": True, "desc_act": False},
        **{"damp_percent": 0.05, "max_length": 64, **fields},
    }
    quantize_gptq(
        base,
        context.out,
        texts,
        device="cpu",
        work=context.work,
        reporter=SilentReporter(),
        **settings,
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
    )
    read = layers_of(out, bits)
    assert len(read) == 7
    model = load_model(out, "cpu")
    original = load_file(base / "model.safetensors")
    for module, weight in read.items():
        # The kernel rounds s (q - z) to float16, once.
        assert np.array_equal(multiplied_with(model, module), weight.astype(np.float16)), module
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


def test_three_bits_run_through_the_words() -> None:
    words = np.array([[0b11 << 30, 0b1, 0]], dtype=np.uint32).view(np.int32)
    assert list(codes_of(words, 3)[0]) == [0] * 10 + [7] + [0] * 21
