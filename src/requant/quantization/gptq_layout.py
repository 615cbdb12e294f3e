"""GPTQ's packed layout, read without the library that wrote it.

W[o, i] = s[g, o] (q[i, o] - z[g, o]) with g = g_idx[i]. Codes and zero points are a stream of bits
that runs through int32 words, the lowest bits first; `checkpoint_format: gptq` stores z - 1, and
readers add the 1 to each number by itself.

qweight  int32 [in * bits / 32, out]      codes, packed along in
qzeros   int32 [groups, out * bits / 32]  zero points, packed along out
scales   float16 [groups, out]
g_idx    int32 [in]
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from requant.models.headers import TensorHeader

if TYPE_CHECKING:
    import torch

PARTS = ("qweight", "qzeros", "scales", "g_idx")
WORD = 32
"""Bits of a word."""


def stored_below(quantization: Mapping[str, Any]) -> int:
    """Return by how much less the format stores a zero point, of `quantization_config`."""
    return 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1


def unpacked(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Read the numbers that are packed along the last dimension.

    Args:
        words: int32 [..., words].
        bits: Of a number: 2, 3, 4 or 8; of 3 bits, number 10 has two in word 0 and one in word 1.

    Returns:
        int32 or int64 [..., words * 32 // bits], each 0 to 2**bits - 1.
    """
    import torch

    mask = (1 << bits) - 1
    if WORD % bits == 0:
        steps = torch.arange(0, WORD, bits, dtype=torch.int32)
        return ((words.unsqueeze(-1) >> steps) & mask).flatten(-2)
    wide = words.long() & 0xFFFFFFFF
    following = torch.nn.functional.pad(wide[..., 1:], (0, 1))
    first = torch.arange(words.shape[-1] * WORD // bits) * bits
    word, shift = first // WORD, first % WORD
    straddling = wide[..., word] | (following[..., word] << WORD)
    return (straddling >> shift) & mask


def dequantized(parts: Mapping[str, "torch.Tensor"], bits: int, below: int) -> "torch.Tensor":
    """Return W, float32 [out, in].

    Args:
        parts: By the names of `PARTS`.
        bits: Of a code.
        below: See `stored_below`.
    """
    scales, groups = parts["scales"].float(), parts["g_idx"].long()
    codes = unpacked(parts["qweight"].T, bits)[:, : len(groups)]
    points = unpacked(parts["qzeros"], bits)[:, : scales.shape[1]] + below
    distance = codes - points.T[:, groups]
    return distance * scales.T[:, groups]


def read_parts(module: str, headers: Mapping[str, TensorHeader]) -> dict[str, "torch.Tensor"]:
    """Load the packed tensors of a layer, by its name in the files."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for part in PARTS:
        name = f"{module}.{part}"
        with safe_open(headers[name].file, framework="pt") as file:
            found[part] = file.get_tensor(name)
    return found
