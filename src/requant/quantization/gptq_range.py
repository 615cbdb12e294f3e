"""What GPTQ's format and float16 can hold, checked on the packed tensors of a layer.

zero point 0     is stored as -1. GPTQModel adds 1 to whole words and reads it as it was meant;
                 AutoGPTQ's and vLLM's kernels add it to each number: they read 2**bits, and the
                 next number's zero point, which lent to it, one too low
small scales     are rounded to multiples of 2**-24; below half of that to 0, and with them every
                 weight of the group
large products   s |q - z| above 65504 are infinite: kernels compute them in float16

A scale may be negative: kernels multiply by it. One of 0 only comes of weights that are not 0, as
a group of zeros gets that of a group of ones.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from requant.errors import ParityError
from requant.quantization.gptq_layout import unpacked

if TYPE_CHECKING:
    import torch

SUBNORMAL_STEP = 2.0**-24
"""Between two numbers of float16 near 0."""
LARGEST = 65504.0
"""Number of float16."""


def smallest_scale(bits: int) -> float:
    """Return the scale whose rounding, by 2**-25 at most, moves the outermost code half a step.

    Of a symmetric grid that code is 2**(bits - 1) steps from 0.
    """
    return 2.0 ** (bits - 1) * SUBNORMAL_STEP


def range_faults(parts: Mapping[str, "torch.Tensor"], bits: int, below: int) -> list[str]:
    """Say what of a layer other readers would not read as it was meant, with the way out.

    Args:
        parts: By the names of `requant.quantization.gptq_layout.PARTS`.
        bits: Of a code.
        below: By how much less the format stores a zero point.
    """
    scales = parts["scales"].float().abs()
    points = unpacked(parts["qzeros"], bits)[:, : scales.shape[1]]
    largest = (1 << bits) - 1
    faults = []
    broken = int((~scales.isfinite()).sum())
    if broken:
        faults.append(
            f"{broken} of {scales.numel()} scales are NaN or infinite: likely a broken weight, one "
            "beyond float16 or too little calibration text: raise calibration_rows or damp_percent"
        )
    wrapped = int((points == largest).sum()) if below else 0
    if wrapped:
        faults.append(
            f"at least {wrapped} of {points.numel()} zero points are 0, stored as -1, which other "
            f"readers take for {largest + 1}: set symmetric to true"
        )
    small = int((scales < smallest_scale(bits)).sum())
    if small:
        faults.append(
            f"{small} of {scales.numel()} scales are below {smallest_scale(bits):.2g}, too small "
            "for float16: weights so small are to be set to 0 where they do nothing"
        )
    points = points + below
    reach = float((scales * points.maximum(largest - points)).nan_to_num(0, 0, 0).max())
    if reach > LARGEST:
        faults.append(f"weights of up to {reach:.3g} are beyond float16, which ends at 65504")
    return faults


def check_ranges(faults: Mapping[str, list[str]]) -> None:
    """Refuse a quantized model, with every layer and what is wrong with it.

    Args:
        faults: Layer to what `range_faults` said.

    Raises:
        ParityError: If there is one.
    """
    lines = [f"{layer}: {fault}" for layer, found in sorted(faults.items()) for fault in found]
    if lines:
        raise ParityError(
            f"GPTQ: {sum(map(bool, faults.values()))} layers do not fit what the format and "
            "float16 hold; mend them, or ship 16 bit (requantize_gptq.enabled=false; for training, "
            "quantize_base.method=nf4)\n" + "\n".join(lines)
        )
