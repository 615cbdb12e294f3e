"""Adapters other than LoRA: peft's own merge, one module at a time, in float32.

The model peft is given has no weights: every weight is one number repeated, which takes no memory,
and gets the original's values only while its turn lasts.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.adapters.folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME, Adapter, locate
from requant.errors import ContractError, RequantError
from requant.machine.library_noise import no_library_noise
from requant.merging.updates import Apply, Update
from requant.models.headers import TensorHeader
from requant.wording import few, printable, shown

if TYPE_CHECKING:
    import torch


SIZES = (
    *("r", "init_r", "target_r", "group_size", "decompose_factor", "oft_block_size"),
    *("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
)
"""Fields by which peft makes tensors before it looks at those of the file."""


def tuner_updates(
    adapter: Adapter, original: Path, headers: Mapping[str, TensorHeader]
) -> dict[str, Update]:
    """Say what an adapter does to each tensor of the original.

    Args:
        adapter: Of a peft_type whose layers can be merged.
        original: Model folder; its config.json is read.
        headers: Tensor name to header.

    Raises:
        ContractError: If peft cannot merge this type, or the adapter's tensors are not those its
            configuration asks for.
    """
    from requant.models.load import import_gptqmodel

    _check_sizes(adapter, headers)
    import_gptqmodel()
    with no_library_noise(), _naming_configuration(adapter):
        model = _with_adapter(original, adapter)
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    # Merging moves values through the one model there is.
    lock = threading.Lock()
    updates: dict[str, Update] = {}
    for path, module in model.named_modules():
        name = path.removeprefix(PREFIX)
        trained = None
        if isinstance(module, AuxiliaryTrainingWrapper):
            trained = module.get_submodule(f"modules_to_save.{module.active_adapters[0]}")
        elif isinstance(module, LNTuningLayer):
            # Its merge swaps the two layers and would be undone by the next.
            trained = module.ln_tuning_layers[module.active_adapters[0]]
        if trained is not None:
            for leaf, tensor in trained.named_parameters():
                updates[locate(f"{name}.{leaf}", headers)] = _constant(tensor)
        elif isinstance(module, BaseTunerLayer):
            for leaf, _ in module.get_base_layer().named_parameters(recurse=False):
                tensor_name = locate(f"{name}.{leaf}", headers)
                shape = tuple(getattr(module.get_base_layer(), leaf).shape)
                updates[tensor_name] = _through(module, leaf, shape, lock)
    return updates


def _check_sizes(adapter: Adapter, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse sizes that no tensor of the original has: peft would make tensors of them.

    Raises:
        ContractError: Naming the field.
    """
    side = max((size for header in headers.values() for size in header.shape), default=0)
    most = {**dict.fromkeys(SIZES, side), "n_frequency": side * side}
    given = {name: adapter.config.get(name) for name in most}
    patterns = adapter.config.get("rank_pattern") or {}
    given |= {f"rank_pattern: {shown(name)}": value for name, value in patterns.items()}
    for name, value in given.items():
        limit = most.get(name, side)
        if value is not None and (type(value) is not int or value > limit):
            raise ContractError(
                f"{adapter.folder / CONFIG_NAME}: {name}={shown(value)}; expected a whole "
                f"number of at most {limit}, the most the original has a place for: save the "
                "adapter again with peft"
            )


@contextmanager
def _naming_configuration(adapter: Adapter) -> Iterator[None]:
    """Turn what peft raises on a configuration it cannot use into an error that names it."""
    try:
        yield
    except (RequantError, MemoryError):
        raise
    # Of a value of another type it raises what that runs into.
    except Exception as error:
        raise ContractError(
            f"{adapter.folder / CONFIG_NAME}: peft can make no adapter of it "
            f"({type(error).__name__}: {printable(error)[:300]}); expected what peft wrote: save "
            "the adapter again with peft"
        ) from error


def _with_adapter(original: Path, adapter: Adapter) -> Any:
    """Wrap a model without weights in the adapter, and check that its tensors are all there."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from peft import set_peft_model_state_dict as load_state
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(original, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(_weightless(parameter.shape)))
    peft_config = PeftConfig.from_pretrained(str(adapter.folder))
    wrapped = get_peft_model(model, peft_config)
    # peft saves what it wraps of an embedding or output layer with it: the base's, unchanged.
    state = {
        name: tensor
        for name, tensor in load_file(adapter.folder / WEIGHTS_NAME).items()
        if ".base_layer." not in name
    }
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
    for names, what in (
        (expected - state.keys(), "lacks"),
        (state.keys() - expected, "holds, beyond what its configuration asks for,"),
    ):
        if names:
            raise ContractError(
                f"{adapter.folder / WEIGHTS_NAME}: {what} {few(sorted(names))}; the file and its "
                "configuration do not belong together, or it was trained on another architecture"
            )
    try:
        load_state(wrapped, state)
    except RuntimeError as error:
        raise ContractError(f"{adapter.folder}: was trained on another base: {error}") from error
    return wrapped.eval().requires_grad_(False)


def _weightless(shape: "torch.Size") -> "torch.Tensor":
    import torch

    return torch.zeros(1).expand(shape)


def _constant(tensor: "torch.Tensor") -> Update:
    whole = tensor.detach().float()
    return Update(tuple(whole.shape), lambda: lambda weight, rows: whole[rows])


def _through(module: Any, leaf: str, shape: tuple[int, ...], lock: threading.Lock) -> Update:
    """Merge one weight or bias by the tuner layer it belongs to."""

    def apply(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
        with lock:
            parameters = dict(module.get_base_layer().named_parameters(recurse=False))
            empty = {name: parameter.data for name, parameter in parameters.items()}
            try:
                for name, parameter in parameters.items():
                    # Some tuners write into all of a layer's parameters in place.
                    parameter.data = weight if name == leaf else empty[name].contiguous()
                module.merge(safe_merge=False, adapter_names=list(module.active_adapters))
                merged: torch.Tensor = getattr(module.get_base_layer(), leaf).detach().clone()
            finally:
                module.merged_adapters.clear()
                for name, parameter in parameters.items():
                    parameter.data = empty[name]
        return merged

    def open_layer() -> Apply:
        return apply

    return Update(shape, open_layer, by_rows=False)
