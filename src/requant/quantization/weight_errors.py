"""What quantization did to each weight, and how many bits are left of it; in weight space alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ContractError
from requant.models.headers import read_headers
from requant.quantization.dequantize import QuantizedFolder, load_tensor

WORST = 5
"""Modules that are named."""


@dataclass(frozen=True)
class WeightErrors:
    """Of every quantized layer."""

    modules: Mapping[str, float]
    """Module to ||W_q - W|| / ||W||, Frobenius."""
    total: float
    """The same of all weights together."""
    count: int
    """Weights of the quantized layers."""
    bits_per_weight: float
    """Codes, scales, zero points and indices, over the weights of the quantized layers."""

    def worst(self) -> list[tuple[str, float]]:
        """Name the modules that lost most, the worst first."""
        return sorted(self.modules.items(), key=lambda item: (-item[1], item[0]))[:WORST]

    def as_record(self) -> dict[str, Any]:
        """What to keep beside the model, in the digits that are alike from machine to machine."""
        return {
            "bits_per_weight": round(self.bits_per_weight, 4),
            "weight_error": round(self.total, 6),
            "modules": {name: round(error, 6) for name, error in self.modules.items()},
        }

    def __str__(self) -> str:
        worst = ", ".join(f"{name} {error:.1%}" for name, error in self.worst())
        return (
            f"{self.bits_per_weight:.3g} bits a weight; weights off by {self.total:.1%}, most in "
            f"{worst}"
        )


def weight_errors(original: Path, quantized: QuantizedFolder) -> WeightErrors:
    """Compare every quantized weight with the original's, one in memory at a time.

    Args:
        original: Folder whose tensors have the quantized model's names.
        quantized: What was made of it.

    Raises:
        ContractError: If no weight of the original is quantized.
    """
    headers = read_headers(original)
    modules: dict[str, float] = {}
    lost = whole = 0.0
    bits = count = 0
    for name in sorted(filter(quantized.holds, headers)):
        weight = load_tensor(name, headers).float()
        error = float((quantized.weight(name) - weight).square().sum())
        norm = float(weight.square().sum())
        modules[name.removesuffix(".weight")] = (error / norm) ** 0.5 if norm else 0.0
        lost, whole = lost + error, whole + norm
        bits, count = bits + quantized.bits(name), count + weight.numel()
    if not modules:
        raise ContractError(
            f"{quantized.folder}: none of its quantized layers has the name of a weight of "
            f"{original}; set quantize_base.enabled=false and requantize_gptq.enabled=false"
        )
    return WeightErrors(modules, (lost / whole) ** 0.5, count, bits / count)
