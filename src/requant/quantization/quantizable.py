"""What of a model can be quantized, from its configuration and the names in its files alone.

nn.Linear in a block           quantized by nf4, int8 and gptq
experts fused to one tensor    stay in 16 bit: transformers cannot load them packed
Conv1D (GPT-2)                 refused: the weights lie the other way round
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ConfigError, ContractError
from requant.figures import figure
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import TORCH_NAMES, logical_shapes, read_headers
from requant.models.pairing import check_model_folder
from requant.models.skeleton import empty_model, read_causal_config
from requant.wording import few

GROUP_SIZES = (32, 64, 128)
NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Layers:
    """The layers inside a model's blocks, by their full names."""

    features: Mapping[str, int]
    """In_features of each linear layer."""
    turned: tuple[str, ...] = ()
    """Conv1D layers."""
    renamed: tuple[str, ...] = ()
    """Linear layers whose weights have another name in the files."""


def layers_of(model: Any, names: Iterable[str]) -> Layers:
    """Sort the layers of a model.

    Args:
        model: On the meta device, as `requant.models.skeleton.empty_model` makes it.
        names: Of the tensors in its files.
    """
    from torch.nn import Linear

    stored = set(names)
    inside = {name: module for name, module in model.named_modules() if NUMBER.search(name)}
    linear = {name: module for name, module in inside.items() if isinstance(module, Linear)}
    return Layers(
        features={name: module.in_features for name, module in linear.items()},
        turned=tuple(name for name, item in inside.items() if type(item).__name__ == "Conv1D"),
        renamed=tuple(
            name for name in linear if file_name(name, model.base_model_prefix, stored) is None
        ),
    )


def fused_experts(model: Any) -> tuple[str, ...]:
    """Name the modules of a model that hold all experts of a block in one tensor."""
    return tuple(
        name
        for name, module in model.named_modules()
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
    )


def file_name(module: str, prefix: str, stored: Iterable[str]) -> str | None:
    """Return the name of a layer's module in a model's files, which may lack the prefix.

    Args:
        module: Name in the network, e.g. transformer.h.0.attn.
        prefix: The network's `base_model_prefix`, e.g. transformer.
        stored: Names of the tensors in the files.
    """
    for name in (module, module.removeprefix(f"{prefix}.")):
        if f"{name}.weight" in stored:
            return name
    return None


def quantizing_problems(layers: Layers, group_size: int | None) -> list[tuple[str, str]]:
    """Say why layers cannot be quantized: the section's field, and the reason with a way out.

    Args:
        layers: Of the model.
        group_size: Of GPTQ; None for bitsandbytes.
    """
    if layers.turned:
        return [
            (
                "enabled",
                f"{len(layers.turned)} of its layers are Conv1D ({few(layers.turned)}), whose "
                "weights lie the other way round than quantized ones. Train it in 16 bit: "
                "quantize_base.enabled=false, requantize_gptq.enabled=false, "
                "train_adapter.target_modules=[all-linear]",
            )
        ]
    if group_size is None:
        return []
    if layers.renamed:
        return [
            (
                "enabled",
                f"its files name {len(layers.renamed)} of its linear layers otherwise than "
                f"transformers ({few(layers.renamed)}), so that what GPTQ makes of them could not "
                "be loaded; set requantize_gptq.enabled=false, and quantize_base.method=nf4",
            )
        ]
    unfit = {name: count for name, count in layers.features.items() if count % group_size}
    if not unfit:
        return []
    alike: dict[int, list[str]] = {}
    for name, count in sorted(unfit.items()):
        alike.setdefault(count, []).append(name)
    where = ", ".join(f"in_features={count} of {few(names)}" for count, names in alike.items())
    sizes = set(layers.features.values())
    valid = [str(size) for size in GROUP_SIZES if all(count % size == 0 for count in sizes)]
    way_out = ", ".join(valid) or (
        "none, set requantize_gptq.enabled=false and quantize_base.method=nf4"
    )
    return [
        ("group_size", f"{group_size} does not divide {where}; valid for this model: {way_out}")
    ]


def check_quantizable(model_folder: Path, group_size: int | None) -> None:
    """Refuse what cannot be quantized, from configuration and headers alone.

    Args:
        model_folder: The model.
        group_size: Of GPTQ; None for a method without groups.

    Raises:
        ConfigError: If `group_size` does not divide the in_features of a layer.
        ContractError: If the model is quantized already, or its layers are no nn.Linear.
        ArtifactError: If it is no complete model folder.
    """
    check_model_folder(model_folder)
    method = quantization_of(read_model_config(model_folder))
    if method is not None:
        raise ContractError(
            f"{model_folder}: is quantized already ({method}); give the 16-bit model it was made of"
        )
    model = empty_model(read_causal_config(model_folder))
    for field, text in quantizing_problems(
        layers_of(model, read_headers(model_folder)), group_size
    ):
        if field == "group_size":
            raise ConfigError(f"group_size={text}")
        raise ContractError(f"{model_folder}: {text}")


@dataclass(frozen=True)
class Unquantized:
    """What of the blocks of a quantized model is still in 16 bit, norms and biases aside."""

    sizes: Mapping[str, int]
    """Kind of layer (the experts' numbers as *) to parameters, largest first."""
    whole: int
    """Parameters of all blocks."""

    @property
    def share(self) -> float:
        """Share of the blocks' parameters, 0 to 1."""
        return sum(self.sizes.values()) / max(self.whole, 1)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} ({figure(size)})" for kind, size in self.sizes.items())
        return (
            f"left in 16 bit: {self.share:.1%} of the blocks' {figure(self.whole)} "
            f"parameters: {kinds or 'nothing'}"
        )


def unquantized(folder: Path) -> Unquantized:
    """Count what was not quantized, from the headers of a quantized model."""
    headers = read_headers(folder)
    sizes: Counter[str] = Counter()
    whole = 0
    for name, shape in logical_shapes(folder, read_model_config(folder)).items():
        block = NUMBER.search(name)
        if block is None:
            continue
        whole += math.prod(shape)
        if len(shape) > 1 and name in headers and headers[name].dtype in TORCH_NAMES:
            kind = NUMBER.sub(".*.", name[block.end() :]).removesuffix(".weight")
            sizes[kind] += math.prod(shape)
    return Unquantized(dict(sizes.most_common()), whole)
