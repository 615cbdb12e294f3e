"""GGUF, llama.cpp's format, by llama.cpp's own writer: a GPTQ model's integers in its blocks.

The package `gguf` holds the writer, the names of tensors and the reader; the converter for Hugging
Face folders is in llama.cpp's repository alone, and would round the weights once more.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.execution.stage import Reporter
from requant.exporting.blocks import block_kind, packed
from requant.exporting.codes import Codes, check_contiguous, modules_of, read_codes, read_gptq
from requant.exporting.gguf_architectures import (
    WAY_OUT,
    add_description,
    add_network,
    check_network,
    rope_rows,
)
from requant.exporting.gguf_vocabulary import add_vocabulary
from requant.models.config import read_model_config
from requant.models.skeleton import read_causal_config
from requant.quantization.dequantize import QuantizedFolder, load_tensor
from requant.quantization.gptq_layout import PARTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from gguf import GGUFWriter

GGUF_NAME = "model.gguf"
Tensor = Callable[[], "npt.NDArray[np.generic]"]


def write_gguf(model: Path, out: Path, reporter: Reporter) -> dict[str, int]:
    """Write a GPTQ model as `GGUF_NAME`.

    Quantized layers go into blocks of `requant.exporting.blocks`; matrices that are not quantized
    keep their dtype; norms and biases are float32, as llama.cpp wants them. One layer is in memory
    at a time.

    Args:
        model: GPTQ folder.
        out: Existing folder.
        reporter: Hears how far it is.

    Returns:
        Type of block -> layers written in it.

    Raises:
        ContractError: If the format cannot hold the model exactly, naming what and the way out.
    """
    from gguf import GGML_QUANT_VERSION, MODEL_ARCH, GGUFWriter, get_tensor_name_map, size_label

    quantized = read_gptq(model)
    arch = MODEL_ARCH[check_network(model, read_model_config(model))]
    check_contiguous(quantized, "GGUF")
    config = read_causal_config(model)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(None, arch.name.lower())
    add_description(writer, model, config)
    add_network(writer, config)
    add_vocabulary(writer, model, config.vocab_size)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    kinds: Counter[str] = Counter()
    tensors: list[tuple[str, Tensor]] = []
    for name in _names(quantized):
        module = name.removesuffix(".weight")
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ContractError(
                f"{model}: llama.cpp's {arch.name.lower()} has no tensor for {name}: {WAY_OUT}"
            )
        if f"{module}.qweight" in quantized.headers:
            kinds[_announce_blocks(writer, known, quantized, module)] += 1
            tensors.append((known, _blocks(quantized, module, config)))
        else:
            tensors.append((known, _announce_plain(writer, known, name, quantized, config)))
    writer.add_file_type(_file_type(kinds))
    writer.add_size_label(size_label(*writer.get_total_parameter_count()))
    writer.write_header_to_file(out / GGUF_NAME)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (_, tensor) in enumerate(tensors, 1):
        writer.write_tensor_data(tensor())
        reporter.progress(done, len(tensors), "tensors")
    writer.close()
    return dict(kinds)


def _names(quantized: QuantizedFolder) -> list[str]:
    """List what is written, by the names that the 16-bit model has."""
    packed_names = {f"{module}.{part}" for module in modules_of(quantized) for part in PARTS}
    plain = quantized.headers.keys() - packed_names
    return sorted([*plain, *(f"{module}.weight" for module in modules_of(quantized))])


def _announce_blocks(
    writer: "GGUFWriter", known: str, quantized: QuantizedFolder, module: str
) -> str:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    codes = read_codes(quantized, module)
    kind = block_kind(module, codes)
    raw = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[raw]
    rows, columns = codes.codes.shape
    shape = (rows, columns // block * size)
    writer.add_tensor_info(known, shape, np.dtype(np.uint8), shape[0] * shape[1], raw)
    return kind


def _blocks(quantized: QuantizedFolder, module: str, config: Any) -> Tensor:
    def read() -> "npt.NDArray[np.generic]":
        codes = in_order(read_codes(quantized, module), module, config)
        return packed(codes, block_kind(module, codes))

    return read


def in_order(codes: Codes, module: str, config: Any) -> Codes:
    """Bring the rows of a layer into llama.cpp's order."""
    return replace(
        codes,
        **{
            part: rope_rows(getattr(codes, part), f"{module}.weight", config)
            for part in ("codes", "points", "scales")
        },
    )


def _announce_plain(
    writer: "GGUFWriter", known: str, name: str, quantized: QuantizedFolder, config: Any
) -> Tensor:
    import numpy as np
    from gguf import GGMLQuantizationType

    header = quantized.headers[name]
    dtype = "F32" if len(header.shape) == 1 else header.dtype
    if dtype not in {"F32", "F16", "BF16"}:
        raise ContractError(f"{name}: is {dtype}; expected F32, F16 or BF16")
    raw = GGMLQuantizationType[dtype]
    count = int(np.prod(header.shape))
    size = count * (4 if dtype == "F32" else 2)
    writer.add_tensor_info(known, header.shape, np.dtype(np.float32), size, raw)

    def read() -> "npt.NDArray[np.generic]":
        tensor = rope_rows(load_tensor(name, quantized.headers), name, config)
        return _as_numpy(tensor, dtype)

    return read


def _as_numpy(tensor: "torch.Tensor", dtype: str) -> "npt.NDArray[np.generic]":
    import torch

    # numpy has no bfloat16; the bits are what is written.
    laid = tensor.float() if dtype == "F32" else tensor.contiguous().view(torch.int16)
    found: npt.NDArray[np.generic] = laid.contiguous().numpy()
    return found


def _file_type(kinds: Counter[str]) -> int:
    """Name the file by the type of most of its layers."""
    from gguf import LlamaFileType

    most = kinds.most_common(1)[0][0]
    return int(LlamaFileType[f"MOSTLY_{most}"])
