"""GGUF's blocks of 32 weights, filled with given integers instead of rounded ones.

llama.cpp's ggml-common.h; d is float16, n = q - z (`requant.exporting.codes`):

Q4_0   d, 32 codes of 4 bits     W = d (code - 8)     n in [-8, 7]       4.5 bits a weight
Q5_0   d, 32 codes of 5 bits     W = d (code - 16)    n in [-16, 15]     5.5 bits
Q8_0   d, 32 codes of 8 bits     W = d code           n in [-128, 127]   8.5 bits

Q4_1 (W = d code + m) would hold a layer with zero points in 5 bits, but m = -d z rounded to
float16, which is the second rounding that an export is to spare: it gets Q5_0.
"""

from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.exporting.codes import Codes, steps_within

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK = 32
KINDS = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}
"""Name of a type of block -> bits of the integers it holds, the smallest first."""


def block_kind(module: str, codes: Codes) -> str:
    """Name the smallest type of block that holds a layer exactly.

    Raises:
        ContractError: If none does.
    """
    if codes.width % BLOCK:
        raise ContractError(
            f"{module}: its groups are of {codes.width} weights; GGUF's blocks of {BLOCK} have one "
            f"scale each: quantize with a group_size that is a multiple of {BLOCK}"
        )
    for kind, bits in KINDS.items():
        if steps_within(codes, bits):
            return kind
    steps = codes.steps
    raise ContractError(
        f"{module}: its weights lie {int(steps.min())} to {int(steps.max())} steps from zero; "
        "GGUF's largest integers are -128 to 127: quantize with symmetric=true"
    )


def packed(codes: Codes, kind: str) -> "npt.NDArray[np.uint8]":
    """Lay a layer out in blocks.

    Returns:
        uint8 [out, in / 32 * bytes of a block].
    """
    import numpy as np

    rows = len(codes.codes)
    steps = codes.steps.reshape(-1, BLOCK).numpy()
    scales = codes.scales.repeat_interleave(codes.width // BLOCK, dim=1).reshape(-1, 1)
    parts: list[Any] = [scales.numpy().astype("<f2").view(np.uint8)]
    if kind == "Q8_0":
        parts.append(steps.astype(np.int8).view(np.uint8))
    else:
        raised = (steps + (1 << (KINDS[kind] - 1))).astype(np.uint8)
        if kind == "Q5_0":
            # The fifth bits of all 32 codes, the first code's lowest.
            parts.append(np.packbits(raised >> 4, axis=1, bitorder="little"))
        low = raised & 15
        parts.append(low[:, : BLOCK // 2] | low[:, BLOCK // 2 :] << 4)
    blocks: npt.NDArray[np.uint8] = np.concatenate(parts, axis=1).reshape(rows, -1)
    return blocks
