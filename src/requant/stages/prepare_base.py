"""prepare_base: the 16-bit original, trained here, copied from a folder or fetched from the hub."""

import json
from pathlib import Path
from typing import Any

from requant.canonical import digest_of
from requant.config.base import FolderBase, HubBase, PrepareBase, StdlibBase
from requant.corpus import base_conversations, base_documents, corpus_digest
from requant.errors import ConfigError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import figure, worded
from requant.machine.library_noise import no_library_noise
from requant.models.base_folder import (
    MODEL_FILES,
    OTHER_FORMATS,
    inspect_base,
    missing_index,
    select_files,
)
from requant.models.finite import check_finite
from requant.models.folder import INDEX_NAME
from requant.models.tokenizer import load_tokenizer
from requant.store.manifest import hash_file

COPY_BYTES = 16 << 20


def execute(section: PrepareBase, context: StageContext) -> Metrics:
    """Write the base into `context.out` as an ordinary Hugging Face folder.

    Returns:
        parameters; for stdlib also loss, tokens and epochs.

    Raises:
        ConfigError: If the repository is unknown, or for what `check_base` finds in the folder.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibBase):
        return train_on_stdlib(source, context)
    if isinstance(source, FolderBase):
        folder, origin = source.path, f"prepare_base.source.path: {source.path}"
    else:
        folder, origin = fetch_model(source), f"prepare_base.source.repo: {source.repo}"
    return {"parameters": float(copy_model(folder, context, origin))}


def train_on_stdlib(source: StdlibBase, context: StageContext) -> Metrics:
    """Train a tokenizer and a small Qwen3 model on the standard library's English.

    Returns:
        loss (nats per token, mean of the last tenth of the steps), parameters, tokens (of the
        training text) and epochs (passes over it).
    """
    import torch

    from requant.training.pretrain import new_model, render, token_windows, train, train_tokenizer

    plain = base_documents()
    tokenizer = train_tokenizer(plain, source.vocab_size, source.sequence_length)
    conversations = [render(tokenizer, *pair) for pair in base_conversations()]
    model = new_model(source, tokenizer, context.seed)
    windows = token_windows(
        [*plain, *conversations], tokenizer, source.sequence_length, context.seed
    )
    parameters = sum(value.numel() for value in model.parameters())
    context.reporter.message(
        f"training {figure(parameters)} parameters on {windows.numel()} tokens "
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
    with no_library_noise():
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

    # Subfolders hold other formats of the same weights (onnx/, original/), as some files do.
    return fetch(
        source.repo,
        source.revision,
        "model",
        "prepare_base.source",
        allow=list(MODEL_FILES),
        ignore=["*/*", *OTHER_FORMATS],
    )


def copy_model(folder: Path, context: StageContext, origin: str) -> int:
    """Copy the files of `folder` that make a model, links by their content, after checking them.

    What later stages read and the folder lacks is made from what it has: the index of shards, and
    tokenizer.json from a sentencepiece or vocabulary file.

    Args:
        folder: Hugging Face folder, or a snapshot in the hub's cache.
        context: Its `out` gets the files.
        origin: The configuration field and its value, for the error's text.

    Returns:
        The parameters of the network, tied ones once.

    Raises:
        ConfigError: With every problem `check_base` finds, one a line, or if a weight is NaN or
            infinite.
    """
    found = inspect_base(folder, origin)
    if found.problems or found.files is None:
        raise ConfigError("\n".join(found.problems))
    for note in found.notes:
        context.reporter.message(note)
    check_finite(origin, found.files.weights)
    files = found.files.taken
    whole = sum(path.stat().st_size for path in files)
    done = 0
    for path in files:
        with path.open("rb") as source, (context.out / path.name).open("wb") as target:
            while block := source.read(COPY_BYTES):
                target.write(block)
                done += len(block)
                context.reporter.progress(done >> 20, whole >> 20, "MiB copied")
    if (made := missing_index(found.files)) is not None:
        context.reporter.message(f"made {INDEX_NAME} from the headers of the shards")
        (context.out / INDEX_NAME).write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
    if not (context.out / "tokenizer.json").exists():
        context.reporter.message("made tokenizer.json from the tokenizer's older files")
        load_tokenizer(folder).backend_tokenizer.save(str(context.out / "tokenizer.json"))
    return found.parameters


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
        files = select_files(source.path, f"prepare_base.source.path: {source.path}")
        return {"folder": digest_of({path.name: hash_file(path) for path in files.taken})}
    from requant.hub import resolve_commit

    commit = resolve_commit(source.repo, source.revision, "model", "prepare_base.source")
    return {"commit": commit}


def _name_public_class(path: Path) -> None:
    """Name the tokenizer class transformers 4 and vLLM know too, not transformers 5's backend."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


STAGE = Stage(
    name="prepare_base",
    version=2,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
    execute=execute,
    content_digests=content_digests,
    artifact="base",
    headline=(worded("loss {}, {} parameters", "loss", "parameters"),),
)
