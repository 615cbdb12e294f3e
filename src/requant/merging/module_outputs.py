"""Whether each merged module does what the module and its adapter do, told by its own outputs.

In a deep model one module moves the logits less than rounding all the others does. Rounding itself
may take half of an update's norm and leave the model what it should be, so the norm of what is off
tells nothing either: its part along the update and the rest are held against what rounding did to
the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.adapters.folder import PREFIX, locate
from requant.errors import ParityError
from requant.merging.whole_tensors import EMBEDDINGS, find_weight
from requant.models.headers import TensorHeader, read_headers

if TYPE_CHECKING:
    import torch

ARITHMETIC = 1e-5
"""Share of the output's norm that float32 sums in another order may differ by."""
PROBES = 1024
"""Random inputs a module is tried on: the outputs of white noise measure the weights themselves,
where real inputs weigh a few channels a hundred times the others."""
PROBED_ROWS = 2048
"""Rows of an embedding that are tried, besides those of the text."""


@dataclass(frozen=True)
class ModuleChange:
    """What merging did to a module's output, beside what its adapter does to it.

    Of output y without the adapter, y + d with it and y + m merged.
    """

    slope: float | None
    """<m, d> / ||d||^2: 1 for a right module, 0 for one that was missed, 0.5 for half the scale, -1
    for the wrong sign; rounding that drops small updates lowers it. None where d is nothing."""
    noise: float
    """||m - slope d|| / ||d||: what goes another way than the update."""
    tensors: Sequence[str]
    """Names of the module's tensors, as the merged folder calls them."""


def watch_modules(merged: Path, found: list[ModuleChange]) -> Callable[[Any], None]:
    """Make a function that watches the adapted modules of a model during its next forward pass.

    Args:
        merged: Model folder; a module's tensors are read when its turn has come.
        found: Gets each adapted module that was run.

    Returns:
        To be called with a peft model in float32 whose adapters are active.
    """
    headers = read_headers(merged)

    def watch(model: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

        watched: list[str] = []
        for path, module in model.named_modules():
            if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                continue
            # peft's own model is a tuner; layers inside a watched one are part of it.
            if not path or any(path.startswith(f"{outer}.") for outer in watched):
                continue
            watched.append(path)
            _watch(path.removeprefix(PREFIX), module, headers, found)

    return watch


def _watch(
    name: str, module: Any, headers: Mapping[str, TensorHeader], found: list[ModuleChange]
) -> None:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        import torch

        handle.remove()
        base = getattr(module, "original_module", None) or module.get_base_layer()
        tensors = {
            leaf: _tensor_of(f"{name}.{leaf}", headers) for leaf, _ in base.named_parameters()
        }
        state = {leaf: _load(tensor, headers, output) for leaf, tensor in tensors.items()}
        inputs = tuple(_probe(given, base) for given in args)
        adapted = _first(module(*inputs, **kwargs)).float()
        of_base = _first(base(*inputs, **kwargs)).float()
        merged = _first(torch.func.functional_call(base, state, inputs, kwargs)).float()
        found.append(_compared(adapted, of_base, merged, list(tensors.values())))

    handle = module.register_forward_hook(hook, with_kwargs=True)


def _probe(given: Any, base: Any) -> Any:
    """White noise in place of a floating input; ids are joined by others from all of the table."""
    import torch

    if not isinstance(given, torch.Tensor):
        return given
    if given.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((*given.shape[:-2], PROBES, given.shape[-1]), generator=generator)
        return noise.to(given)
    rows = getattr(base, "num_embeddings", 0)
    spread = torch.arange(0, rows, max(1, rows // PROBED_ROWS))
    return torch.cat([given.flatten(), spread.to(given)]).unsqueeze(0)


def _tensor_of(name: str, headers: Mapping[str, TensorHeader]) -> str:
    found = locate(name, headers)
    if found not in headers:
        # A tied output layer is not in the file.
        found = find_weight(headers, EMBEDDINGS, name)
    return found


def _load(name: str, headers: Mapping[str, TensorHeader], like: Any) -> "torch.Tensor":
    from safetensors import safe_open

    if name not in headers:
        raise ParityError(f"merge_fp16: {name} was trained, and the merged folder has no such one")
    with safe_open(headers[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.to(_first(like).device).float()


def _compared(
    adapted: "torch.Tensor", bare: "torch.Tensor", merged: "torch.Tensor", tensors: Sequence[str]
) -> ModuleChange:
    update, change = adapted - bare, merged - bare
    size, noise = float(update.norm()), ARITHMETIC * float(adapted.norm())
    if size <= noise:
        # Nothing that could be followed; where there is no update at all nothing may change.
        spoilt = size == 0 and float(change.norm()) > noise
        return ModuleChange(None, float("inf") if spoilt else 0.0, tensors)
    slope = float((change * update).sum()) / size**2
    rest = float((change - slope * update).norm())
    # NaN must stay one.
    return ModuleChange(slope, 0.0 if rest <= noise else (rest - noise) / size, tensors)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
