"""Onto a quantized model's weights, back in float32: exactly the modules that were quantized."""

from collections.abc import Mapping
from pathlib import Path

from requant.merging.updates import Apply, Update
from requant.models.headers import TensorHeader
from requant.quantization.dequantize import read_quantized


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
    found = read_quantized(quantized)

    def update(name: str) -> Update:
        def open_weight() -> Apply:
            weight = found.weight(name)
            return lambda _, rows: weight[rows]

        return Update(original[name].shape, open_weight)

    return {name: update(name) for name in original if found.holds(name)}
