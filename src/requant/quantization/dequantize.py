"""A quantized model's weights in float32, read from its files without the kernel that runs them.

nf4, int8   bitsandbytes' own arithmetic, on the CPU
gptq        `requant.quantization.gptq_layout`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import NF4_STATE, TensorHeader, read_headers
from requant.quantization.gptq_layout import dequantized, read_parts, stored_below

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizedFolder:
    """A folder whose linear layers, or some of them, are quantized."""

    folder: Path
    method: str
    """nf4, int8 or gptq."""
    headers: Mapping[str, TensorHeader]
    settings: Mapping[str, Any]
    """`quantization_config` of its config.json."""

    def holds(self, name: str) -> bool:
        """Tell whether a weight of the original is quantized here.

        Args:
            name: Of the original's tensor, e.g. model.layers.0.mlp.up_proj.weight.
        """
        if self.method == "gptq":
            return name.removesuffix("weight") + "qweight" in self.headers
        if self.method == "nf4":
            return name + NF4_STATE in self.headers
        return name in self.headers and name.removesuffix("weight") + "SCB" in self.headers

    def weight(self, name: str) -> "torch.Tensor":
        """Return what is left of a weight, float32 [out, in].

        Args:
            name: Of the original's tensor, one that `holds`.

        Raises:
            ContractError: If it is packed with bits that no reader of the format knows.
        """
        if self.method == "nf4":
            return self._nf4(name)
        if self.method == "int8":
            return self._int8(name)
        bits = int(self.settings["bits"])
        module = name.removesuffix(".weight")
        if bits not in {2, 3, 4, 8}:
            raise ContractError(f"{module}: is packed with {bits} bits; expected 2, 3, 4 or 8")
        return dequantized(read_parts(module, self.headers), bits, stored_below(self.settings))

    def bits(self, name: str) -> int:
        """Return the bits that a weight takes, scales, zero points and indices among them."""
        module = name.removesuffix("weight")
        stored = (
            header.end - header.start
            for tensor, header in self.headers.items()
            if tensor.startswith(module) and tensor != module + "bias"
        )
        return 8 * sum(stored)

    def _nf4(self, name: str) -> "torch.Tensor":
        """NormalFloat4 (arXiv:2305.14314), in the dtype the quantized model multiplies with."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {
            part.removeprefix(f"{name}."): self._load(part)
            for part in self.headers
            if part.startswith(f"{name}.")
        }
        state = QuantState.from_dict(parts, device="cpu")
        weight: torch.Tensor = dequantize_4bit(self._load(name), state)
        return weight.float()

    def _int8(self, name: str) -> "torch.Tensor":
        """LLM.int8 (arXiv:2208.07339): W = q s / 127, a scale for each row."""
        scales = self._load(name.removesuffix("weight") + "SCB").float()
        return self._load(name).float() * (scales / 127).unsqueeze(1)

    def _load(self, name: str) -> "torch.Tensor":
        return load_tensor(name, self.headers)


def read_quantized(folder: Path) -> QuantizedFolder:
    """Read what of a folder is quantized, from its configuration and headers.

    Raises:
        ContractError: If nothing is.
    """
    config = read_model_config(folder)
    method = quantization_of(config)
    if method is None:
        raise ContractError(f"{folder}: is not quantized; merge into the original instead")
    return QuantizedFolder(folder, method, read_headers(folder), config["quantization_config"])


def load_tensor(name: str, headers: Mapping[str, TensorHeader]) -> "torch.Tensor":
    """Load one tensor from the file its header names."""
    from safetensors import safe_open

    with safe_open(headers[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
