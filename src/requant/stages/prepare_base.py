"""prepare_base: the 16-bit original, trained here, copied from a folder or fetched from the hub."""

import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from requant.canonical import digest_of
from requant.config.sections import FolderBase, HubBase, PrepareBase, StdlibBase
from requant.corpus import base_conversations, base_documents, corpus_digest
from requant.errors import ConfigError
from requant.stage import Metrics, Stage, StageContext
from requant.store.manifest import MANIFEST_NAME, hash_file

# What makes a model: weights without pickles, configuration, tokenizer, template, licence.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt")


def execute(section: PrepareBase, context: StageContext) -> Metrics:
    """Write the base into `context.out` as an ordinary Hugging Face folder.

    Returns:
        parameters; for stdlib also loss, tokens and epochs.

    Raises:
        ConfigError: If the folder or repository is unknown, lacks a file a model needs, or holds a
            model that is quantized already.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibBase):
        return train_on_stdlib(source, context)
    if isinstance(source, FolderBase):
        folder, origin = source.path, f"prepare_base.source.path: {source.path}"
    else:
        folder, origin = fetch_model(source), f"prepare_base.source.repo: {source.repo}"
    copy_model(folder, context, origin)
    return {"parameters": float(count_parameters(context.out))}


def train_on_stdlib(source: StdlibBase, context: StageContext) -> Metrics:
    """Train a tokenizer and a small Qwen3 model on the standard library's English.

    Returns:
        loss (nats per token, mean of the last tenth of the steps), parameters, tokens (of the
        training text) and epochs (passes over it).
    """
    import torch

    from requant.corpus.pretrain import new_model, render, token_windows, train, train_tokenizer
    from requant.models import quiet_libraries

    plain = base_documents()
    tokenizer = train_tokenizer(plain, source.vocab_size, source.sequence_length)
    conversations = [render(tokenizer, *pair) for pair in base_conversations()]
    model = new_model(source, tokenizer, context.seed)
    windows = token_windows(
        [*plain, *conversations], tokenizer, source.sequence_length, context.seed
    )
    parameters = sum(value.numel() for value in model.parameters())
    context.reporter.message(
        f"training {parameters / 1e6:.1f}M parameters on {windows.numel()} tokens "
        f"for {source.steps} steps of {source.batch_size * source.sequence_length}"
    )
    loss = train(
        model,
        windows,
        source,
        seed=context.seed,
        device=context.device,
        reporter=context.reporter,
    )
    with quiet_libraries():
        model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(context.out)
        tokenizer.save_pretrained(context.out)
    _name_public_class(context.out / "tokenizer_config.json")
    return {
        "loss": loss,
        "parameters": float(parameters),
        "tokens": float(windows.numel()),
        "epochs": source.steps * source.batch_size / len(windows),
    }


def fetch_model(source: HubBase) -> Path:
    """Download a repository's model files at the commit its revision resolves to.

    Raises:
        ConfigError, TransientError: As `requant.hub.fetch`.
    """
    from requant.hub import fetch

    # Subfolders hold other formats of the same weights (onnx/, original/).
    return fetch(
        source.repo,
        source.revision,
        "model",
        "prepare_base.source",
        allow=list(MODEL_FILES),
        ignore=["*/*"],
    )


def copy_model(folder: Path, context: StageContext, origin: str) -> None:
    """Copy the files of `folder` that make a model, links by their content, after checking them.

    Args:
        folder: Hugging Face folder, or a snapshot in the hub's cache.
        context: Its `out` gets the files.
        origin: The configuration field and its value, for the error's text.

    Raises:
        ConfigError: As `model_files`.
    """
    files = model_files(folder, origin)
    sizes = [path.stat().st_size for path in files]
    for index, path in enumerate(files):
        shutil.copyfile(path, context.out / path.name)
        done = sum(sizes[: index + 1])
        context.reporter.progress(done >> 20, sum(sizes) >> 20, "MiB")


def model_files(folder: Path, origin: str) -> list[Path]:
    """Return the files of a Hugging Face folder that make a 16-bit model, sorted by name.

    Raises:
        ConfigError: If the folder is missing, lacks config.json, weights (also a shard its index
            names) or tokenizer, or holds a quantized model.
    """
    if not folder.is_dir():
        raise ConfigError(f"{origin} is not a folder; give one with config.json and *.safetensors")
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name != MANIFEST_NAME
        and not path.name.startswith(".")
        and _matches(path.name, MODEL_FILES)
    )
    names = [path.name for path in files]
    missing = [
        wanted
        for wanted, patterns in (
            ("config.json", ("config.json",)),
            ("weights (*.safetensors; pickled *.bin are not read)", ("*.safetensors",)),
            (f"a tokenizer ({', '.join(TOKENIZER_FILES)})", TOKENIZER_FILES),
        )
        if not any(_matches(name, patterns) for name in names)
    ]
    missing += sorted(_shards(folder / "model.safetensors.index.json") - set(names))
    if missing:
        raise ConfigError(
            f"{origin} lacks {'; '.join(missing)} (found {', '.join(names) or 'none'})"
        )
    quantization = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    if quantization:
        raise ConfigError(
            f"{origin} is quantized ({quantization.get('quant_method')}); the base must be the "
            "16-bit original, quantize_base makes the quantized one from it"
        )
    return files


def count_parameters(folder: Path) -> int:
    """Count the numbers in all weight files of a folder, tied ones once."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            # safe_open gives no mapping: it cannot be iterated.
            for name in file.keys():  # noqa: SIM118
                count = 1
                for size in file.get_slice(name).get_shape():
                    count *= size
                total += count
    return total


def content_digests(section: PrepareBase) -> dict[str, str]:
    """Return role -> digest of what the source points to outside the configuration.

    Raises:
        ConfigError: If the folder or repository cannot be a base.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibBase):
        return {"corpus": corpus_digest()}
    if isinstance(source, FolderBase):
        files = model_files(source.path, f"prepare_base.source.path: {source.path}")
        return {"folder": digest_of({path.name: hash_file(path) for path in files})}
    from requant.hub import resolve_commit

    commit = resolve_commit(source.repo, source.revision, "model", "prepare_base.source")
    return {"commit": commit}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _shards(index: Path) -> set[str]:
    if not index.is_file():
        return set()
    return set(json.loads(index.read_bytes())["weight_map"].values())


def _name_public_class(path: Path) -> None:
    """Name the tokenizer class transformers 4 and vLLM know too, not transformers 5's backend."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


STAGE = Stage(
    name="prepare_base",
    version=1,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
    execute=execute,
    content_digests=content_digests,
)
