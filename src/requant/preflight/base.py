"""Does the base fit what the stages will do with it? From config.json and file headers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.config import Config
from requant.config.base import FolderBase, HubBase, StdlibBase
from requant.machine.looking import Watch, unwatched
from requant.methods import METHODS
from requant.models.base_folder import MODEL_FILES, check_base, check_small_files
from requant.models.base_view import base_view
from requant.models.config import read_model_config
from requant.models.headers import read_headers, weight_files
from requant.models.skeleton import empty_model, read_causal_config
from requant.models.tokenizer import chat_template
from requant.preflight.problem import Problem
from requant.quantization.quantizable import (
    Layers,
    auto_round_problem,
    layers_of,
    quantizing_problems,
)

FIELD = "prepare_base.source"

LOADING_SECONDS = 120.0
"""To build a network without weights, and a tokenizer from sentencepiece; of a large one tens."""
LEARNED_POSITIONS = re.compile(r"(^|\.)(wpe|\w*position\w*)$")
"""Names of the modules that look positions up: GPT-2's wpe, OPT's embed_positions."""
WITH_TEMPLATE = {
    "path": "add chat_template.jinja",
    "repo": "take its instruct variant, or a local copy with a chat_template.jinja",
}
QWEN3_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of the base that is trained from the standard library."""


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base without a tensor being read."""

    config: Mapping[str, Any]
    """Content of config.json."""
    layers: Layers
    present: frozenset[str]
    """Last names of the layers inside a block, which an adapter may name."""
    positions: int | None = None
    """Tokens beyond which the network fails, because its positions are learned one by one; rotary
    and ALiBi positions have no such end, `max_position_embeddings` is then what it was trained on.
    """


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


def door_problems(config: Config, watch: Watch = unwatched) -> Iterator[Problem]:
    """Say why the base is none, whatever a night would do with it.

    Of a model on the hub, whose weights are not here yet: what its small files say.
    """
    source = config.prepare_base.source
    if isinstance(source, StdlibBase):
        return
    if isinstance(source, HubBase):
        check, origin = check_small_files, f"{FIELD}.repo: {source.repo}"
    else:
        check, origin = check_base, f"{FIELD}.path: {source.path}"
    with opened_base(config) as folder:
        assert folder is not None
        watch(f"{origin}: its network and its tokenizer", LOADING_SECONDS)
        yield from (Problem("", line) for line in check(folder, origin))


def base_problems(config: Config, watch: Watch = unwatched) -> Iterator[Problem]:
    """Check the settings that must fit the base, against one that `door_problems` let in."""
    source, folder = config.prepare_base.source, base_folder(config)
    if folder is None:
        assert isinstance(source, StdlibBase)
        yield from fit_problems(config, stdlib_facts(source))
        return
    watch(f"{FIELD}: {folder}: its network", LOADING_SECONDS)
    with base_view(folder, config.prepare_base.leave_out) as view:
        yield from _template_problems(config, folder)
        # A snapshot's folder has the name of its commit.
        yield from fit_problems(
            config,
            hub_facts(source, view, folder.name)
            if isinstance(source, HubBase)
            else folder_facts(view),
        )


def needing_template(config: Config) -> list[str]:
    """Name the stages that need the base's chat template, also where its rows are plain text."""
    return [name for name in ("quantize_base", "requantize_gptq") if config.runs(name)]


@contextmanager
def opened_base(config: Config) -> Iterator[Path | None]:
    """Yield the base's folder as the configuration wants it read; None where it is to be made.

    Raises:
        ConfigError, TransientError: As `base_folder`.
        ArtifactError: As `base_view`.
    """
    folder = base_folder(config)
    if folder is None:
        yield None
        return
    with base_view(folder, config.prepare_base.leave_out) as view:
        yield view


def _template_problems(config: Config, folder: Path) -> Iterator[Problem]:
    needing = needing_template(config)
    if not needing or chat_template(folder) is not None:
        return
    off = " and ".join(f"{name}.enabled=false" for name in needing)
    source = config.prepare_base.source
    field, name = ("repo", source.repo) if isinstance(source, HubBase) else ("path", str(folder))
    yield Problem(
        f"{FIELD}.{field}",
        f"{name} has no chat template, which {' and '.join(needing)} need; {WITH_TEMPLATE[field]}, "
        f"or set {off}",
    )


def stdlib_facts(source: StdlibBase) -> BaseFacts:
    """Tell what the base that will be trained is going to be like."""
    inside = {"o_proj": source.hidden_size, "down_proj": source.intermediate_size}
    return BaseFacts(
        config={"num_hidden_layers": source.layers},
        layers=Layers(
            features={
                f"model.layers.{block}.{name}": inside.get(name, source.hidden_size)
                for block in range(source.layers)
                for name in QWEN3_LAYERS
            },
            split=tuple(
                f"model.layers.{block}.{name}" for block in range(source.layers) for name in inside
            ),
        ),
        present=frozenset(QWEN3_LAYERS),
    )


def folder_facts(folder: Path) -> BaseFacts:
    """Read config.json and the names in the headers of the weights.

    Raises:
        ContractError: As `requant.models.skeleton.read_causal_config`.
    """
    return _facts(folder, read_headers(folder))


def hub_facts(source: HubBase, folder: Path, commit: str) -> BaseFacts:
    """Read the config.json of a snapshot, and headers from it or, where it lacks weights, the hub.

    Args:
        source: Names the repository.
        folder: Of the snapshot.
        commit: What it is a snapshot of.

    Raises:
        ConfigError, TransientError: As `requant.hub.tensor_shapes`.
        ContractError: As `requant.models.skeleton.read_causal_config`.
    """
    if weight_files(folder):
        return folder_facts(folder)
    from requant.hub import tensor_shapes

    return _facts(folder, tensor_shapes(source.repo, commit, FIELD))


def _facts(folder: Path, names: Iterable[str]) -> BaseFacts:
    names = list(names)
    config = read_causal_config(folder, len(names))
    model = empty_model(config)
    layers = layers_of(model, names)
    learned = any(
        LEARNED_POSITIONS.search(name)
        and type(module).__name__.endswith("Embedding")
        and any(True for _ in module.parameters())
        for name, module in model.named_modules()
    )
    return BaseFacts(
        config=read_model_config(folder),
        positions=config.max_position_embeddings if learned else None,
        layers=layers,
        present=frozenset(name.rpartition(".")[2] for name in (*layers.features, *layers.turned)),
    )


def fit_problems(config: Config, facts: BaseFacts) -> Iterator[Problem]:
    """Check group sizes, trained layers and lengths against the base."""
    again = config.requantize_gptq
    yield from _quantizing(config, facts)
    train, further, on_grid = config.train_adapter, config.continue_train, config.train_on_grid
    targets = train.target_modules
    unknown = [name for name in targets if name not in facts.present]
    named = not METHODS[train.method].prompts and targets != ("all-linear",)
    if train.enabled and named and unknown:
        yield Problem(
            "train_adapter.target_modules",
            f"{', '.join(unknown)} not in this model; its layers are: "
            f"{', '.join(sorted(facts.present))}",
        )
    if on_grid.enabled and (lacking := sorted(set(on_grid.target_modules) - facts.present)):
        yield Problem(
            "train_on_grid.target_modules",
            f"{', '.join(lacking)} not in this model; its layers are: "
            f"{', '.join(sorted(facts.present))}",
        )
    blocks = facts.config.get("num_hidden_layers", facts.config.get("n_layer"))
    if further.enabled and blocks and further.layers and further.layers > blocks:
        yield Problem(
            "continue_train.layers",
            f"got {further.layers}, the model has {blocks} blocks; give 1 to {blocks}",
        )
    lengths = {
        "train_adapter.optimisation.max_length": train.enabled and train.optimisation.max_length,
        "continue_train.optimisation.max_length": (
            further.enabled and further.optimisation.max_length
        ),
        "train_on_grid.optimisation.max_length": (
            on_grid.enabled and on_grid.optimisation.max_length
        ),
        "requantize_gptq.calibration_length": again.enabled and again.calibration_length,
    }
    for field, length in lengths.items():
        if facts.positions and length > facts.positions:
            yield Problem(
                field,
                f"got {length}, the base has {facts.positions} learned positions and fails beyond "
                f"them; give at most {facts.positions}",
            )


def _quantizing(config: Config, facts: BaseFacts) -> Iterator[Problem]:
    """Check group sizes, the layers of overrides, and who rounds, of candidates too."""
    quantize, again = config.quantize_base, config.requantize_gptq
    size = quantize.group_size if quantize.method == "gptq" else None
    quantizing = {
        "quantize_base": quantizing_problems(facts.layers, size) if quantize.enabled else [],
        "requantize_gptq": (
            quantizing_problems(facts.layers, again.group_size, again.tensor_parallel)
            if again.enabled
            else []
        ),
    }
    for section, fields in (("quantize_base", quantize), ("requantize_gptq", again)):
        for number, override in enumerate(fields.overrides if fields.enabled else ()):
            if unknown := [name for name in override.modules if name not in facts.present]:
                yield Problem(
                    f"{section}.overrides.{number}.modules",
                    f"{', '.join(unknown)} not in this model; its layers are: "
                    f"{', '.join(sorted(facts.present))}",
                )
    for number, candidate in enumerate(again.candidates if again.enabled else ()):
        if candidate.group_size is not None:
            quantizing[f"requantize_gptq.candidates.{number}"] = quantizing_problems(
                facts.layers, candidate.group_size, again.tensor_parallel
            )
    if again.enabled and (problem := auto_round_problem(facts.layers)):
        tries = {f"candidates.{number}.": each for number, each in enumerate(again.candidates)}
        for place, each in tries.items() if tries else [("", again)]:
            if (each.method or again.method) == "auto_round":
                yield Problem(f"requantize_gptq.{place}method", problem)
    for section, problems in quantizing.items():
        yield from (Problem(f"{section}.{field}", text) for field, text in problems)
