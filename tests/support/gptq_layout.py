"""GPTQ's packed layout read from its description alone, by numpy: no kernel, no library of GPTQ.

A layer of W [out, in] has four tensors (AutoGPTQ's `checkpoint_format: gptq`):

qweight  int32 [in * bits / 32, out]    codes q of each column, one after the other along in
qzeros   int32 [groups, out * bits / 32]  z - 1 of each group, one after the other along out
scales   float16 [groups, out]          s
g_idx    int32 [in]                     the group of each input

W[o, i] = s[g, o] (q[i, o] - z[g, o]) with g = g_idx[i]. The codes are a stream of bits, the lowest
first, that runs through the words: of 3 bits, code 10 has two bits in word 0 and one in word 1.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

PARTS = ("qweight", "qzeros", "scales", "g_idx")
Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def codes_of(words: npt.NDArray[np.int32], bits: int) -> Codes:
    """Read unsigned numbers of `bits` bits from int32 [n, words]; return int64 [n, numbers]."""
    octets = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    stream = np.unpackbits(octets, axis=1, bitorder="little")
    numbers = stream.reshape(len(words), -1, bits)
    return numbers @ (1 << np.arange(bits, dtype=np.int64))


def dequantized(tensors: Mapping[str, npt.NDArray[np.generic]], module: str, bits: int) -> Array:
    """Return W, float64 [out, in], of a layer of a checkpoint."""
    qweight, qzeros, scales, g_idx = (tensors[f"{module}.{part}"] for part in PARTS)
    codes = codes_of(qweight.T.astype(np.int32), bits)
    points = codes_of(qzeros.astype(np.int32), bits)[:, : scales.shape[1]] + 1
    groups = g_idx.astype(np.int64)
    return scales.astype(np.float64)[groups].T * (codes - points[groups].T)


def layers_of(folder: Path, bits: int) -> dict[str, Array]:
    """Return W of every quantized layer of a folder whose weights are one file."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names: list[str] = list(file.keys())
        modules = [name.removesuffix(".qweight") for name in names if ".qweight" in name]
        tensors = {
            f"{module}.{part}": file.get_tensor(f"{module}.{part}")
            for module in modules
            for part in PARTS
        }
    return {module: dequantized(tensors, module, bits) for module in modules}
