"""What of a model can be quantized, from its configuration and the names in its files alone.

nn.Linear in a block           quantized by nf4, int8 and gptq
experts fused to one tensor    stay in 16 bit: transformers cannot load them packed
Conv1D (GPT-2)                 refused: the weights lie the other way round
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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

GROUP_SIZES = (16, 32, 64, 128)
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
    split: tuple[str, ...] = ()
    """Linear layers whose in_features tensor parallelism splits over GPUs (row-parallel)."""
    fused: tuple[str, ...] = ()
    """Modules that hold all experts of a block in one tensor."""


def layers_of(model: Any, names: Iterable[str]) -> Layers:
    """Sort the layers of a model.

    Args:
        model: On the meta device, as `requant.models.skeleton.empty_model` makes it.
        names: Of the tensors in its files.
    """
    from torch.nn import Linear

    rowwise = [
        re.escape(pattern).replace(r"\*", r"\d+")
        for pattern, style in (getattr(model.config, "base_model_tp_plan", None) or {}).items()
        if style == "rowwise"
    ]
    split = re.compile("|".join(f"(?:.*\\.)?{pattern}" for pattern in rowwise or [r"(?!)"]))

    stored = set(names)
    inside = {name: module for name, module in model.named_modules() if NUMBER.search(name)}
    linear = {name: module for name, module in inside.items() if isinstance(module, Linear)}
    return Layers(
        features={name: module.in_features for name, module in linear.items()},
        turned=tuple(name for name, item in inside.items() if type(item).__name__ == "Conv1D"),
        renamed=tuple(
            name for name in linear if file_name(name, model.base_model_prefix, stored) is None
        ),
        split=tuple(name for name in linear if split.fullmatch(name)),
        fused=fused_experts(model),
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


def quantizing_problems(
    layers: Layers, group_size: int | None, tensor_parallel: int = 1
) -> list[tuple[str, str]]:
    """Say all that speaks against quantizing: the section's field, and the reason with a way out.

    Args:
        layers: Of the model.
        group_size: Of GPTQ; None for bitsandbytes.
        tensor_parallel: GPUs that a server splits the quantized model over.
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
    problems = []
    if layers.renamed:
        problems.append(
            (
                "enabled",
                f"its files name {len(layers.renamed)} of its linear layers otherwise than "
                f"transformers ({few(layers.renamed)}), so that what GPTQ makes of them could not "
                "be loaded; set requantize_gptq.enabled=false, and quantize_base.method=nf4",
            )
        )
    unfit = [name for name, count in layers.features.items() if count % abs(group_size)]
    if unfit:
        problems.append(
            (
                "group_size",
                f"{group_size} does not divide {_listed(layers, unfit)}; valid for this model: "
                + _valid(lambda size: _divides(layers, size)),
            )
        )
        return problems
    uneven = [
        name for name in layers.split if not _splits(layers, name, group_size, tensor_parallel)
    ]
    if uneven:
        problems.append(
            (
                "tensor_parallel",
                f"{tensor_parallel} GPUs cannot share the groups of {group_size} of "
                f"{_listed(layers, uneven, group_size)}; valid group_size for {tensor_parallel}: "
                + _valid(
                    lambda size: (
                        _divides(layers, size)
                        and all(
                            _splits(layers, name, size, tensor_parallel) for name in layers.split
                        )
                    ),
                    "none, serve this model on one GPU (tensor_parallel=1)",
                ),
            )
        )
    return problems


def auto_round_problem(layers: Layers) -> str | None:
    """Say why AutoRound could not round a model that GPTQ can; None where it could."""
    if not layers.fused:
        return None
    return (
        f"auto_round would round the experts of {few(layers.fused)} one by one, and transformers "
        "cannot load them so; set it to gptq, which leaves them in 16 bit"
    )


def _divides(layers: Layers, size: int) -> bool:
    return all(count % size == 0 for count in layers.features.values())


def _splits(layers: Layers, name: str, size: int, parts: int) -> bool:
    """Tell whether every GPU gets whole groups of a layer, or columns where it has one group."""
    return layers.features[name] % (parts * abs(size)) == 0


def _valid(
    fits: Callable[[int], bool],
    otherwise: str = "none, set requantize_gptq.enabled=false and quantize_base.method=nf4",
) -> str:
    return ", ".join(str(size) for size in GROUP_SIZES if fits(size)) or otherwise


def _listed(layers: Layers, names: Iterable[str], group_size: int | None = None) -> str:
    """Put all layers into words, those of one name and size in different blocks as one kind."""
    kinds: Counter[tuple[int, str]] = Counter(
        (layers.features[name], NUMBER.sub(".*.", name)) for name in names
    )
    by_size: dict[int, list[str]] = {}
    for (count, kind), number in sorted(kinds.items()):
        by_size.setdefault(count, []).append(f"{kind} ({number})")
    return ", ".join(
        f"in_features={count}"
        + (f" ({count // group_size} groups)" if group_size and group_size > 0 else "")
        + f" of {', '.join(found)}"
        for count, found in by_size.items()
    )


def check_quantizable(
    model_folder: Path, group_size: int | None, tensor_parallel: int = 1
) -> Layers:
    """Refuse what cannot be quantized, from configuration and headers alone.

    Args:
        model_folder: The model.
        group_size: Of GPTQ; None for a method without groups.
        tensor_parallel: GPUs that a server splits the quantized model over.

    Returns:
        The layers of the model.

    Raises:
        ConfigError: If `group_size` does not divide the in_features of a layer, or GPUs could not
            share its groups; all such layers are named.
        ContractError: If the model is quantized already, or its layers are no nn.Linear.
        ArtifactError: If it is no complete model folder.
    """
    check_model_folder(model_folder)
    method = quantization_of(read_model_config(model_folder))
    if method is not None:
        raise ContractError(
            f"{model_folder}: is quantized already ({method}); give the 16-bit model it was made of"
        )
    layers = layers_of(empty_model(read_causal_config(model_folder)), read_headers(model_folder))
    problems = quantizing_problems(layers, group_size, tensor_parallel)
    if not problems:
        return layers
    text = "\n".join(
        f"{model_folder}: {words}" if field == "enabled" else f"{field}={words}"
        for field, words in problems
    )
    raise (ContractError if problems[0][0] == "enabled" else ConfigError)(text)


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
