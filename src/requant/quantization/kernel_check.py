"""Whether a loaded GPTQ model multiplies with what its files say, by a reader of our own."""

from collections.abc import Sequence
from typing import Any

from requant.errors import ParityError
from requant.quantization.dequantize import QuantizedFolder, load_tensor
from requant.quantization.quantizable import file_name

SMALLEST = 2.0**-24
"""Step of float16 near 0, in which kernels compute the weights."""


def quantized_layers(model: Any, quantized: QuantizedFolder) -> dict[str, str]:
    """Map the layers of a network to the modules of a folder's files that are quantized."""
    weights = {
        name.replace(".qweight", ".weight") for name in quantized.headers if ".qweight" in name
    }
    found = {
        name: file_name(name, model.base_model_prefix, weights) for name, _ in model.named_modules()
    }
    return {name: module for name, module in found.items() if module is not None}


def check_kernel(model: Any, quantized: QuantizedFolder) -> None:
    """Compare what a loaded model multiplies with and its files, an input of each group and layer.

    What a layer makes of a unit vector is a column of its W. One column shows the group's scales
    and zero points, and the packing of the codes is the same in all.

    Args:
        model: Loaded by transformers from the folder.
        quantized: The folder, of GPTQ.

    Raises:
        ParityError: Naming every layer that multiplies with something else than its files hold.
    """
    import torch

    dtype = model.dtype
    relative = max(torch.finfo(kind).eps for kind in (dtype, torch.float16))
    wrong: list[str] = []
    layers = quantized_layers(model, quantized)
    for name, module in sorted(layers.items()):
        groups = load_tensor(f"{module}.g_idx", quantized.headers).tolist()
        columns = _one_of_each(groups)
        ours = quantized.weight(f"{module}.weight")[:, columns]
        inputs = torch.zeros(len(columns), len(groups), dtype=dtype, device=model.device)
        inputs[range(len(columns)), columns] = 1
        layer = model.get_submodule(name)
        with torch.no_grad():
            theirs = layer(inputs).float().cpu().T
        bias = getattr(layer, "bias", None)
        added = torch.zeros(len(ours), 1) if bias is None else bias.float().cpu().unsqueeze(1)
        off = (theirs - added - ours).abs()
        # NaN fails, too.
        if not bool((off <= relative * (ours.abs() + added.abs()) + SMALLEST).all()):
            wrong.append(f"{module}: off by up to {float(off.max()):.2g}")
    if wrong:
        raise ParityError(
            f"GPTQ: {len(wrong)} of {len(layers)} layers multiply with other weights than their "
            "files hold, so other servers would serve another model than the one that is measured; "
            "set requantize_gptq.desc_act=false, symmetric=true and bits=4, and report it\n"
            + "\n".join(wrong)
        )


def _one_of_each(groups: Sequence[int]) -> list[int]:
    """Return the first input of each group, in the order of the groups."""
    first: dict[int, int] = {}
    for column, group in enumerate(groups):
        first.setdefault(group, column)
    return [first[group] for group in sorted(first)]
