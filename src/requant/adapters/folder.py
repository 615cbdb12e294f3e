"""A peft adapter folder, read without peft: its configuration, its tensors, what is refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from requant.errors import ContractError
from requant.expected import expected
from requant.methods import peft_types
from requant.models.folder import ADAPTER_CONFIG_NAME
from requant.models.headers import TensorHeader, read_shard_header
from requant.outside.files import refuse_links_out
from requant.outside.json_text import read_object
from requant.wording import few, printable, shown

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
"""peft's name for the wrapped model inside adapter files."""

CONFIG_NAME = ADAPTER_CONFIG_NAME
WEIGHTS_NAME = "adapter_model.safetensors"

NEUTRAL_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they were."""

REFUSED_OPTIONS = (
    "target_parameters",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Fields of LoraConfig that train or compute something that W + s B A does not say."""

FACTORS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
)
WRAPPERS = {"base_layer", "modules_to_save", "token_adapter"}
TOKEN_ROWS = "trainable_tokens_delta"
"""Rows of an embedding that were trained, without the others."""


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that has been read but for its tensors' data."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    """Name without peft's prefix to header."""

    def load(self, name: str) -> "torch.Tensor":
        """Read one tensor as float32."""
        from safetensors import safe_open

        with safe_open(self.folder / WEIGHTS_NAME, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(PREFIX + name).float()
        return tensor


def read_adapter(folder: Path) -> Adapter:
    """Read the configuration and the names of an adapter.

    Raises:
        ContractError: If it is of a type that cannot be merged, or changes the base weights.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ContractError(
                f"{folder / name}: is missing; expected peft's {CONFIG_NAME} and {WEIGHTS_NAME} "
                "(requant reads no pickles such as adapter_model.bin: save the adapter again with "
                "a newer peft)"
            )
    refuse_links_out(folder)
    config = read_object(folder / CONFIG_NAME)
    _check_type(folder, config)
    _check_fields(folder, config)
    headers = read_shard_header(folder / WEIGHTS_NAME).tensors
    foreign = [name for name in headers if not name.startswith(PREFIX)]
    # Others hold what all layers share beside the wrapped model.
    if foreign and config["peft_type"] in {"LORA", "TRAINABLE_TOKENS"}:
        raise ContractError(
            f"{folder / WEIGHTS_NAME}: {few(foreign)} do not begin with {PREFIX}; save the "
            "adapter with peft's save_pretrained"
        )
    tensors = {name.removeprefix(PREFIX): header for name, header in headers.items()}
    return Adapter(folder, config, tensors)


class _Fields(BaseModel):
    """What is read of a configuration, with peft's types; one of LoRA has the first two."""

    r: int | None = Field(None, ge=0)
    lora_alpha: float | None = Field(None, allow_inf_nan=False)
    use_rslora: bool | None = None
    use_dora: bool | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    token_indices: list[int] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None


def _check_fields(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / CONFIG_NAME
    try:
        fields = _Fields.model_validate(config, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ContractError(
            f"{path}: {name}={shown(config.get(name))}: {expected(first)}; save the adapter again "
            "with peft"
        ) from error
    if config["peft_type"] == "LORA" and not (fields.r and fields.lora_alpha is not None):
        raise ContractError(
            f"{path}: r={fields.r} and lora_alpha={fields.lora_alpha}; expected a rank of 1 or "
            "more and a number: save the adapter again with peft"
        )
    if config["peft_type"] == "TRAINABLE_TOKENS" and not fields.token_indices:
        raise ContractError(
            f"{path}: token_indices={shown(config.get('token_indices'))}; expected a list of token "
            "ids: save the adapter again with peft"
        )


def _check_type(folder: Path, config: Mapping[str, Any]) -> None:
    if "peft_type" not in config:
        raise ContractError(f"{folder / CONFIG_NAME}: has no peft_type; expected peft's own file")
    kind = printable(config["peft_type"])[:100]
    if kind in peft_types(merges=False):
        raise ContractError(
            f"{folder}: peft_type={kind} adds tokens or attention, not weights: it cannot be "
            "merged. Evaluate and serve it as an adapter (merge_fp16.enabled=false), or train "
            "lora or dora"
        )
    # Others read the base's weights when their layers are made, and would come out wrong unseen.
    mergeable = peft_types(merges=True)
    if kind not in mergeable:
        raise ContractError(
            f"{folder}: peft_type={kind} is not among those requant has shown to merge exactly: "
            f"{', '.join(mergeable)}. Merge it with peft, in float32, or serve it as an adapter"
        )
    if kind != "LORA":
        return
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in NEUTRAL_INITIALISATIONS:
        raise ContractError(
            f"{folder}: init_lora_weights={shown(initialisation)} moved the base weights when "
            "training began, so the original + B A is not what was trained. Convert the adapter "
            "with peft's save_pretrained(path_initial_model_for_weight_conversion=...), or train "
            "with init_lora_weights=true"
        )
    for option in REFUSED_OPTIONS:
        if config.get(option):
            raise ContractError(
                f"{folder}: {option}={shown(config[option])} is not a change of single weights "
                "that requant can merge; train without it"
            )


def is_additive(adapter: Adapter) -> bool:
    """Tell whether it only adds s B A to weights, so that a share of it is a share of s."""
    added = tuple(f".{leaf}" for leaf in FACTORS if leaf != "lora_magnitude_vector")
    return adapter.config["peft_type"] == "LORA" and all(
        name.endswith(added) for name in adapter.tensors
    )


def split_names(tensors: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Sort an adapter's tensors.

    Returns:
        Module to the LoRA factors it has, and the name in the original to the adapter's name of
        tensors that were trained whole (`modules_to_save`, biases, a resized embedding). Token rows
        are in neither.
    """
    factors: dict[str, set[str]] = {}
    whole: dict[str, str] = {}
    for name in tensors:
        leaf = next((leaf for leaf in FACTORS if name.endswith("." + leaf)), None)
        if leaf:
            factors.setdefault(name[: -len(leaf) - 1], set()).add(leaf)
        elif not name.endswith(f".{TOKEN_ROWS}"):
            whole[plain_name(name)] = name
    return factors, whole


def plain_name(name: str) -> str:
    """Return a tensor's name without those of peft's layers around its own."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in WRAPPERS)


def is_one(name: str, known: Iterable[str]) -> bool:
    """Tell whether a module or tensor has one of these names, whatever it is inside of."""
    return any(f".{name}".endswith(f".{item}") for item in known)


def locate(name: str, original: Mapping[str, TensorHeader]) -> str:
    """Return what the original's files call a tensor of the loaded model.

    Some checkpoints leave out the name of the body (`h.0...` for `transformer.h.0...`).
    """
    shorter = name.partition(".")[2]
    return shorter if name not in original and shorter in original else name
