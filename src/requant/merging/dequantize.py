"""A quantized model's weights, back in float32: exactly the modules that were quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ContractError
from requant.merging.updates import Apply, Update
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import NF4_STATE, TensorHeader, read_headers

if TYPE_CHECKING:
    import torch

GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")


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
    shift = 0 if config["quantization_config"].get("checkpoint_format") == "gptq_v2" else 1

    def update(name: str) -> Update:
        def open_weight() -> Apply:
            if method == "nf4":
                weight = _nf4(name, headers)
            elif method == "int8":
                weight = _int8(name, headers)
            else:
                weight = _gptq(name.removesuffix("weight"), headers, bits, shift)
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
    module: str, headers: Mapping[str, TensorHeader], bits: int, shift: int
) -> "torch.Tensor":
    """GPTQ (arXiv:2210.17323): W = s (q - z); the first format stores z - 1.

    `qweight` is int32 [in * bits / 32, out], `qzeros` int32 [groups, out * bits / 32], `scales`
    [groups, out], `g_idx` int32 [in].
    """
    import torch

    if 32 % bits:
        raise ContractError(f"{module}: is packed with {bits} bits; expected 2, 4 or 8")
    packed, zeros, scales, groups = (_load(module + part, headers) for part in GPTQ_PARTS)
    steps = torch.arange(0, 32, bits)
    mask = (1 << bits) - 1
    codes = (packed.unsqueeze(1) >> steps.view(1, -1, 1)) & mask
    points = ((zeros.unsqueeze(2) >> steps) & mask).flatten(1) + shift
    distance = codes.flatten(0, 1) - points[groups.long()]
    return (scales[groups.long()].float() * distance).T.contiguous()


def _load(name: str, headers: Mapping[str, TensorHeader]) -> "torch.Tensor":
    from safetensors import safe_open

    with safe_open(headers[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
