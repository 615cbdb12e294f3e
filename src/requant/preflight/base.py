"""Does the base fit what the stages will do with it? From config.json and file headers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.base_folder import MODEL_FILES, check_base
from requant.config import Config
from requant.config.sections import UNMERGEABLE_METHODS, FolderBase, HubBase, StdlibBase
from requant.gptq import GROUP_SIZES
from requant.models import read_model_config
from requant.preflight.memory import stamps, unless_known
from requant.preflight.problem import Problem
from requant.weights import Shape, read_headers, weight_files

FIELD = "prepare_base.source"

QWEN3_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of the base that is trained from the standard library."""


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base without a tensor being read."""

    config: Mapping[str, Any]
    """Of config.json."""
    features: Mapping[str, int]
    """In_features of each linear layer inside a block, by its full name."""


def base_folder(config: Config) -> Path | None:
    """Return the folder of the base: given, or in the hub's cache; None where it is to be made.

    Of a model on the hub no weights are downloaded.

    Raises:
        ConfigError, TransientError: As `requant.hub.fetch`.
    """
    source = config.prepare_base.source
    if isinstance(source, FolderBase):
        return source.path
    if isinstance(source, HubBase):
        from requant.hub import fetch

        small = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
        return fetch(source.repo, source.revision, "model", FIELD, allow=small, ignore=["*/*"])
    return None


def base_problems(config: Config) -> Iterator[Problem]:
    """Check the base itself, and the settings that must fit it."""
    source = config.prepare_base.source
    folder = base_folder(config)
    if folder is None or isinstance(source, StdlibBase):
        assert isinstance(source, StdlibBase)
        yield from fit_problems(config, stdlib_facts(source))
        return
    if isinstance(source, HubBase):
        yield from fit_problems(config, hub_facts(source, folder))
        return
    origin = f"{FIELD}.path: {source.path}"
    found = (
        unless_known(
            config.state,
            {"look": "base", "folder": str(folder.resolve()), "files": stamps(folder)},
            lambda: [Problem("", line) for line in check_base(folder, origin)],
        )
        if folder.is_dir()
        else [Problem("", line) for line in check_base(folder, origin)]
    )
    yield from found
    if not found:
        yield from fit_problems(config, folder_facts(folder))


def stdlib_facts(source: StdlibBase) -> BaseFacts:
    """Tell what the base that will be trained is going to be like."""
    inside = {"o_proj": source.hidden_size, "down_proj": source.intermediate_size}
    return BaseFacts(
        config={
            "num_hidden_layers": source.layers,
            "max_position_embeddings": source.sequence_length,
        },
        features={
            f"model.layers.{block}.{name}": inside.get(name, source.hidden_size)
            for block in range(source.layers)
            for name in QWEN3_LAYERS
        },
    )


def folder_facts(folder: Path) -> BaseFacts:
    """Read config.json and the headers of the weights."""
    return _facts(folder, {name: header.shape for name, header in read_headers(folder).items()})


def hub_facts(source: HubBase, folder: Path) -> BaseFacts:
    """Read the config.json of a snapshot, and headers from it or, where it lacks weights, the hub.

    Raises:
        ConfigError, TransientError: As `requant.hub.tensor_shapes`.
    """
    if weight_files(folder):
        return folder_facts(folder)
    from requant.hub import tensor_shapes

    # A snapshot's folder has the name of its commit.
    return _facts(folder, tensor_shapes(source.repo, folder.name, FIELD))


def _facts(folder: Path, shapes: Mapping[str, Shape]) -> BaseFacts:
    return BaseFacts(
        config=read_model_config(folder),
        features={
            name.removesuffix(".weight"): shape[1]
            for name, shape in shapes.items()
            if name.endswith(".weight")
            and len(shape) == 2
            and any(part.isdigit() for part in name.split("."))
        },
    )


def fit_problems(config: Config, facts: BaseFacts) -> Iterator[Problem]:
    """Check group sizes, trained layers and lengths against the base."""
    quantize, again = config.quantize_base, config.requantize_gptq
    if quantize.enabled and quantize.method == "gptq":
        yield from _group_size("quantize_base", quantize.group_size, facts)
    if again.enabled:
        yield from _group_size("requantize_gptq", again.group_size, facts)
    train, further = config.train_adapter, config.continue_train
    targets = train.target_modules
    if train.enabled and train.method not in UNMERGEABLE_METHODS and targets != ("all-linear",):
        present = {name.rpartition(".")[2] for name in facts.features}
        if unknown := [name for name in targets if name not in present]:
            yield Problem(
                "train_adapter.target_modules",
                f"{', '.join(unknown)} not in this model; its layers are: "
                f"{', '.join(sorted(present))}",
            )
    blocks = facts.config.get("num_hidden_layers", facts.config.get("n_layer"))
    if further.enabled and blocks and further.layers and further.layers > blocks:
        yield Problem(
            "continue_train.layers",
            f"got {further.layers}, the model has {blocks} blocks; give 1 to {blocks}",
        )
    limit = facts.config.get("max_position_embeddings", facts.config.get("n_positions"))
    lengths = {
        "train_adapter.optimisation.max_length": train.enabled and train.optimisation.max_length,
        "continue_train.optimisation.max_length": (
            further.enabled and further.optimisation.max_length
        ),
        "requantize_gptq.calibration_length": again.enabled and again.calibration_length,
    }
    for field, length in lengths.items():
        if limit and length > limit:
            yield Problem(
                field,
                f"got {length}, the base knows {limit} positions (max_position_embeddings); give "
                f"at most {limit}",
            )


def _group_size(section: str, size: int, facts: BaseFacts) -> Iterator[Problem]:
    unfit = {name: count for name, count in facts.features.items() if count % size}
    if unfit:
        name, count = min(unfit.items())
        valid = [
            str(group)
            for group in GROUP_SIZES
            if all(count % group == 0 for count in facts.features.values())
        ]
        yield Problem(
            f"{section}.group_size",
            f"{size} does not divide in_features={count} of {name} ({len(unfit)} layers in all); "
            f"valid for this model: {', '.join(valid) or 'none'}",
        )
