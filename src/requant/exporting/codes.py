"""The integers and scales of a GPTQ layer, which every export writes down once more.

W[o, i] = s[o, g] n[o, i] with n = q - z, whatever q and z are. A format that holds s in float16 and
n as an integer holds W exactly: nothing is rounded a second time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ContractError
from requant.models.config import quantization_of, read_model_config
from requant.models.folder import CORRECTION_NAME
from requant.quantization.dequantize import QuantizedFolder, read_quantized
from requant.quantization.gptq_layout import read_parts, stored_below, unpacked
from requant.wording import few

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Codes:
    """What is written of one layer."""

    codes: "torch.Tensor"
    """q, int16 [out, in]."""
    points: "torch.Tensor"
    """z, int16 [out, groups]."""
    scales: "torch.Tensor"
    """s, float16 [out, groups]."""

    @property
    def width(self) -> int:
        """Inputs of a group."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def steps(self) -> "torch.Tensor":
        """n, int16 [out, in]."""
        return self.codes - self.points.repeat_interleave(self.width, dim=1)

    @property
    def weight(self) -> "torch.Tensor":
        """W, float32 [out, in]: exact, as 11 bits times 9 are less than the 24 of float32."""
        return self.steps.float() * self.scales.float().repeat_interleave(self.width, dim=1)


def read_gptq(folder: Path) -> QuantizedFolder:
    """Read which layers of a folder are quantized.

    Raises:
        ContractError: If it is no GPTQ model, or one whose weights are not all of it.
    """
    method = quantization_of(read_model_config(folder))
    if method != "gptq":
        found = f"quantized by {method}" if method else "not quantized"
        raise ContractError(
            f"{folder}: is {found}; expected a GPTQ model, whose integers an export writes down: "
            "give the artifact of requantize_gptq"
        )
    if (folder / CORRECTION_NAME).is_dir():
        raise ContractError(
            f"{folder / CORRECTION_NAME}: is a LoRA that is part of the model, and an export holds "
            "the weights alone; quantize with requantize_gptq.eora_rank=0, or serve the GPTQ "
            "folder with its LoRA"
        )
    return read_quantized(folder)


def modules_of(quantized: QuantizedFolder) -> list[str]:
    """List the quantized modules of a GPTQ folder, in the order of their names."""
    suffix = ".qweight"
    return sorted(name.removesuffix(suffix) for name in quantized.headers if name.endswith(suffix))


def check_contiguous(quantized: QuantizedFolder, name: str) -> None:
    """Refuse a model whose groups are not runs of neighbouring inputs, from its g_idx alone.

    Args:
        quantized: The folder.
        name: Of the format that has no place for another order.

    Raises:
        ContractError: Naming layers, and the ways out.
    """
    from safetensors import safe_open

    scattered = []
    for module in modules_of(quantized):
        header = quantized.headers[f"{module}.g_idx"]
        groups = quantized.headers[f"{module}.scales"].shape[0]
        with safe_open(header.file, framework="pt") as file:
            found = file.get_tensor(f"{module}.g_idx").tolist()
        width = len(found) // groups
        if found != [column // width for column in range(len(found))]:
            scattered.append(module)
    if scattered:
        raise ContractError(
            f"{quantized.folder}: the groups of {len(scattered)} layers are spread over their "
            f"inputs ({few(scattered)}), as desc_act=true makes them, and {name} has no place for "
            "such an order; serve the GPTQ folder itself, or quantize with desc_act=false (the "
            "default act_group_aware=true keeps most of what the order gains)"
        )


def read_codes(quantized: QuantizedFolder, module: str) -> Codes:
    """Load a layer whose groups are contiguous."""
    import torch

    bits = int(quantized.settings["bits"])
    parts = read_parts(module, quantized.headers)
    scales = parts["scales"]
    codes = unpacked(parts["qweight"].T, bits)[:, : len(parts["g_idx"])]
    points = unpacked(parts["qzeros"], bits)[:, : scales.shape[1]]
    return Codes(
        codes.to(torch.int16),
        (points + stored_below(quantized.settings)).T.to(torch.int16),
        scales.T.contiguous(),
    )


def steps_within(codes: Codes, bits: int) -> bool:
    """Tell whether signed integers of so many bits hold every n of a layer."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    steps = codes.steps
    return bool(low <= int(steps.min()) and int(steps.max()) <= high)
