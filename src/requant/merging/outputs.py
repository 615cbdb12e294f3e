"""Whether each merged module does what the module and its adapter do, on real activations.

In a deep model one module moves the logits less than rounding all the others does; only its own
outputs tell that it was missed or scaled wrongly.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ParityError
from requant.merging.adapter import PREFIX, locate
from requant.merging.stored import EMBEDDINGS, find_weight
from requant.weights import TensorHeader, read_headers

if TYPE_CHECKING:
    import torch

ARITHMETIC = 1e-5
"""Of the output's norm: what float32 sums in another order may differ by."""


def watch_modules(merged: Path, errors: dict[str, float]) -> Callable[[Any], None]:
    """Make a function that watches the adapted modules of a model during its next forward pass.

    For inputs x of a module with weights W in the model, W' in the merged folder, and output y with
    its adapters: ||y - W'x|| / ||y - Wx||. A missed module is 1, half the scale 0.5.

    Args:
        merged: Model folder; a module's tensors are read when its turn has come.
        errors: Gets each tensor of the adapted modules with its module's error.

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
            _watch(path.removeprefix(PREFIX), module, headers, errors)

    return watch


def _watch(
    name: str, module: Any, headers: Mapping[str, TensorHeader], errors: dict[str, float]
) -> None:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        import torch

        handle.remove()
        base = getattr(module, "original_module", None) or module.get_base_layer()
        tensors = {
            leaf: _tensor_of(f"{name}.{leaf}", headers) for leaf, _ in base.named_parameters()
        }
        state = {leaf: _load(tensor, headers, output) for leaf, tensor in tensors.items()}
        merged = torch.func.functional_call(base, state, args, kwargs)
        error = _error(output, merged, base(*args, **kwargs))
        errors.update(dict.fromkeys(tensors.values(), error))

    handle = module.register_forward_hook(hook, with_kwargs=True)


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


def _error(adapted: Any, merged: Any, bare: Any) -> float:
    y, ours, without = (_first(output).float() for output in (adapted, merged, bare))
    error = max(0.0, float((y - ours).norm()) - ARITHMETIC * float(y.norm()))
    update = float((y - without).norm())
    return error / update if update else float("inf") if error else 0.0


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
