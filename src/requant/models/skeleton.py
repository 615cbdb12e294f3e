"""A model without its weights: what transformers makes of a folder, from config and headers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ContractError, RequantError
from requant.machine.library_noise import no_library_noise
from requant.models.config import check_depth, read_model_config
from requant.models.headers import TensorHeader, headers_of, weight_files
from requant.wording import few, printable, shown

BUFFERS_OF_OLD_FILES = r"rotary_emb\.inv_freq|(^|\.)position_ids$"
"""Stored by older releases of transformers, computed by newer ones, which pass over them."""


@dataclass(frozen=True)
class Skeleton:
    """The network of a config.json, and how the tensors of a folder fit into it."""

    model: Any
    """On the meta device: modules, names and shapes, no data."""
    missing: tuple[str, ...]
    """Tensors of the network that no file holds; transformers would fill them with random numbers.
    Tied ones are not among them."""
    mismatched: tuple[str, ...]
    """`name: stored [...], expected [...]`."""
    unread: tuple[str, ...]
    """Tensors in the files that are not part of the network."""

    @property
    def parameters(self) -> int:
        """The network's parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def read_skeleton(folder: Path, files: Sequence[Path] | None = None) -> Skeleton:
    """Load a causal language model on the meta device, from config.json and file headers.

    It is transformers' own loading, with its renamings and its fusing of experts, so that what it
    says of missing and superfluous tensors is what loading would do.

    Args:
        folder: Model folder, not quantized.
        files: Its weights; None for `weight_files(folder)`.

    Raises:
        ContractError: If config.json is not that of a causal language model transformers knows.
        ArtifactError: If config.json or a weights file cannot be read.
    """
    import torch

    headers = headers_of(weight_files(folder) if files is None else files)
    config = read_causal_config(folder, len(headers))
    empty = empty_model(config)
    with no_library_noise():
        model, report = type(empty).from_pretrained(
            None,
            config=config,
            state_dict={
                name: torch.empty(header.shape, device="meta") for name, header in headers.items()
            },
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = [
        f"{name}: stored {list(stored)}, expected {list(expected)}"
        for name, stored, expected in sorted(report["mismatched_keys"])
    ]
    return Skeleton(
        model=model,
        missing=tuple(sorted(report["missing_keys"])),
        mismatched=tuple(mismatched),
        unread=tuple(sorted({*report["unexpected_keys"], *_passed_over(model, headers)})),
    )


def built(folder: Path, files: Sequence[Path] | None = None) -> Skeleton:
    """Read a skeleton; whatever transformers raises on the way is an error of requant's.

    Raises:
        ContractError: In one line.
        ArtifactError: As `read_skeleton`.
    """
    try:
        return read_skeleton(folder, files)
    except (RequantError, MemoryError):
        raise
    except Exception as error:
        raise ContractError(
            f"{folder / 'config.json'}: transformers cannot build the model ({one_line(error)}); "
            "correct it, or copy the file anew"
        ) from error


def check_network(folder: Path) -> None:
    """Refuse a folder whose weights are not all of the network that its config.json describes.

    Raises:
        ContractError: With what transformers would fill with random numbers.
        ArtifactError: As `read_skeleton`.
    """
    if problems := loading_problems(built(folder)):
        raise ContractError("\n".join(f"{folder}: {problem}" for problem in problems))


def empty_model(config: Any) -> Any:
    """Build the network of a configuration on the meta device: modules, names and shapes, no data.

    Args:
        config: From `read_causal_config`.
    """
    import torch

    with no_library_noise():
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)


def _passed_over(model: Any, headers: Mapping[str, TensorHeader]) -> set[str]:
    """Superfluous tensors that transformers does not mention, because it expects them."""
    own = set(model.state_dict())
    own |= {name.removeprefix(f"{model.base_model_prefix}.") for name in own}
    ignored = {*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())}
    pattern = re.compile("|".join(f"(?:{part})" for part in (BUFFERS_OF_OLD_FILES, *ignored)))
    return {name for name in headers if name not in own and pattern.search(name)}


def read_causal_config(folder: Path, tensors: int | None = None) -> Any:
    """Return transformers' configuration of a folder's causal language model.

    Args:
        folder: Of the model.
        tensors: In its weights, for `check_depth`; None for an artifact, which was checked before
            it was made.

    Raises:
        ContractError: In one line, if transformers does not know the architecture, would have to
            run code of the model's own, or it is an encoder-decoder or of several modalities.
        ArtifactError: As `read_model_config` and `check_depth`.
    """
    fields = read_model_config(folder)
    if tensors is not None:
        check_depth(folder, fields, tensors)
    path = folder / "config.json"
    with no_library_noise():
        import transformers
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = fields.get("model_type")
    classes = fields.get("architectures") or []
    named = few(printable(name)[:100] for name in classes) or "no architecture"
    if kind not in CONFIG_MAPPING_NAMES:
        own_code = "auto_map" in fields
        raise ContractError(
            f"{path}: model_type={shown(kind)} ({named}) is not known to transformers "
            f"{transformers.__version__}"
            + (
                ", and requant does not run the model's own code (auto_map); take a model "
                "transformers has an implementation of"
                if own_code
                else "; correct it, or install a release of transformers that knows the model"
            )
        )
    try:
        with no_library_noise():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a field of the file makes transformers raise
        raise ContractError(
            f"{path}: transformers cannot read it: {one_line(error)}; copy it anew"
        ) from error
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ContractError(
            f"{path}: {named} (model_type={shown(kind)}) is not a causal language model; requant "
            "trains decoder-only text models (architectures ...ForCausalLM)"
        )
    if "text_config" in fields or "vision_config" in fields:
        raise ContractError(
            f"{path}: {named} is a model of several modalities (text_config or vision_config); "
            "requant trains text models: take the text-only release, or save its language model "
            "alone"
        )
    return config


def loading_problems(skeleton: Skeleton) -> list[str]:
    """Say, one line each, what transformers would fill with random numbers instead of weights."""
    problems = []
    if skeleton.missing:
        problems.append(
            f"lacks {len(skeleton.missing)} tensors of {type(skeleton.model).__name__}, which "
            f"would be random numbers: {few(skeleton.missing)}; copy the weights anew, or correct "
            "config.json"
        )
    if skeleton.mismatched:
        problems.append(
            f"{len(skeleton.mismatched)} tensors have another shape than config.json says: "
            f"{few(skeleton.mismatched)}; the two are not of one model"
        )
    return problems


def one_line(error: BaseException) -> str:
    """Return a library's error as one line: its type and what it says, cut at 300 characters."""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"
