"""Round to nearest: what a grid costs without calibration, which a calibrated model is held to."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def round_to_nearest(
    weight: "torch.Tensor", bits: int, group_size: int, symmetric: bool
) -> "torch.Tensor":
    """Round each weight to the nearest point of its group's grid, s in float16 as it is stored.

    symmetric   s = 2 max|w| / (2**bits - 1), W = s (clamp(round(w / s), -2**(bits-1), ...))
    asymmetric  s = (max - min) / (2**bits - 1) over the group and 0, z = round(-min / s)

    Args:
        weight: Floating [out, in].
        bits: Of a code.
        group_size: Weights along in that share a scale; -1 for all.
        symmetric: Whether zero lies in the middle.

    Returns:
        float32 [out, in].
    """
    width = weight.shape[1] if group_size < 0 else group_size
    groups = weight.float().reshape(-1, width)
    steps = (1 << bits) - 1
    if symmetric:
        scale = 2 * groups.abs().amax(1, keepdim=True) / steps
    else:
        scale = (groups.amax(1, keepdim=True).clamp(min=0) - _lowest(groups)) / steps
    # Zeros alone: any scale holds them.
    scale = scale.where(scale > 0, 1.0).half().float()
    point = 1 << (bits - 1) if symmetric else (-_lowest(groups) / scale).round()
    codes = ((groups / scale).round() + point).clamp(0, steps)
    return ((codes - point) * scale).reshape(weight.shape)


def _lowest(groups: "torch.Tensor") -> "torch.Tensor":
    return groups.amin(1, keepdim=True).clamp(max=0)


def round_layers(model: Any, names: set[str], bits: int, group_size: int, symmetric: bool) -> None:
    """Round linear layers of a loaded model to nearest, in place.

    Args:
        model: transformers model, its weights in memory.
        names: Modules of the network.
        bits, group_size, symmetric: See `round_to_nearest`.
    """
    import torch

    with torch.no_grad():
        for name in sorted(names):
            weight = model.get_submodule(name).weight
            weight.copy_(round_to_nearest(weight, bits, group_size, symmetric))
