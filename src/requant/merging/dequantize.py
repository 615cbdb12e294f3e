"""A quantized model's weights, back in float32: exactly the modules that were quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ContractError
from requant.merging.updates import Apply, Update
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import NF4_STATE, TensorHeader, read_headers
from requant.quantization.gptq_layout import dequantized, read_parts, stored_below

if TYPE_CHECKING:
    import torch


def dequantized_updates(quantized: Path, original: Mapping[str, TensorHeader]) -> dict[str, Update]:
    """Replace each weight that was quantized by what is left of it.

    Args:
        quantized: bitsandbytes NF4 or int8, or GPTQ folder.
        original: Tensor name to header.

    Returns:
        Tensor name to update; what was left in 16 bit is not in it.

    Raises:
        ContractError: If the model is not quantized.
    """
    config = read_model_config(quantized)
    method = quantization_of(config)
    headers = read_headers(quantized)
    if method is None:
        raise ContractError(f"{quantized}: is not quantized; merge into the original instead")
    weights = [name for name in original if _is_quantized(name, method, headers)]
    bits = config["quantization_config"].get("bits", 8)
    below = stored_below(config["quantization_config"])

    def update(name: str) -> Update:
        def open_weight() -> Apply:
            if method == "nf4":
                weight = _nf4(name, headers)
            elif method == "int8":
                weight = _int8(name, headers)
            else:
                weight = _gptq(name.removesuffix(".weight"), headers, bits, below)
            return lambda _, rows: weight[rows]

        return Update(original[name].shape, open_weight)

    return {name: update(name) for name in weights}


def _is_quantized(name: str, method: str, headers: Mapping[str, TensorHeader]) -> bool:
    if method == "gptq":
        return name.removesuffix("weight") + "qweight" in headers
    return name + (NF4_STATE if method == "nf4" else "") in headers and (
        method == "nf4" or name.removesuffix("weight") + "SCB" in headers
    )


def _nf4(name: str, headers: Mapping[str, TensorHeader]) -> "torch.Tensor":
    """NormalFloat4 (arXiv:2305.14314), in the dtype the quantized model multiplies with."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    parts = {
        part.removeprefix(f"{name}."): _load(part, headers)
        for part in headers
        if part.startswith(f"{name}.")
    }
    state = QuantState.from_dict(parts, device="cpu")
    weight: torch.Tensor = dequantize_4bit(_load(name, headers), state)
    return weight.float()


def _int8(name: str, headers: Mapping[str, TensorHeader]) -> "torch.Tensor":
    """LLM.int8 (arXiv:2208.07339): W = q s / 127, a scale for each row."""
    scales = _load(name.removesuffix("weight") + "SCB", headers).float()
    return _load(name, headers).float() * (scales / 127).unsqueeze(1)


def _gptq(
    module: str, headers: Mapping[str, TensorHeader], bits: int, below: int
) -> "torch.Tensor":
    """GPTQ (arXiv:2210.17323), see `requant.quantization.gptq_layout`."""
    return dequantized(read_parts(module, headers), bits, below)


def _load(name: str, headers: Mapping[str, TensorHeader]) -> "torch.Tensor":
    from safetensors import safe_open

    with safe_open(headers[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
