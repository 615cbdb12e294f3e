"""prepare_base: the 16-bit original, trained here, copied from a folder or fetched from the hub."""

from collections.abc import Callable
from typing import Any

from requant.config.sections import FolderBase, HubBase, PrepareBase, StdlibBase
from requant.corpus import base_documents, corpus_digest
from requant.errors import ConfigError, TransientError
from requant.stage import Metrics, Stage, StageContext


def execute(section: PrepareBase, context: StageContext) -> Metrics:
    """Write the base into `context.out` as an ordinary Hugging Face folder.

    Raises:
        ConfigError: If the folder or repository is unknown, or lacks a file a model needs.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    return train_on_stdlib(source, context)


def train_on_stdlib(source: StdlibBase, context: StageContext) -> Metrics:
    """Train a tokenizer and a small Qwen3 model on the standard library's English.

    Returns:
        loss (nats per token, mean of the last tenth of the steps), parameters, tokens (of the
        training text) and epochs (passes over it).
    """
    import torch

    from requant.corpus.pretrain import new_model, token_windows, train, train_tokenizer

    documents = base_documents()
    tokenizer = train_tokenizer(documents, source.vocab_size, source.sequence_length)
    model = new_model(source, tokenizer, context.seed)
    windows = token_windows(documents, tokenizer, source.sequence_length, context.seed)
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
    model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(context.out)
    tokenizer.save_pretrained(context.out)
    return {
        "loss": loss,
        "parameters": float(parameters),
        "tokens": float(windows.numel()),
        "epochs": source.steps * source.batch_size / len(windows),
    }


def content_digests(section: PrepareBase) -> dict[str, str]:
    """Return role -> digest of what the source points to outside the configuration."""
    source = section.source
    return {"corpus": corpus_digest()}


STAGE = Stage(
    name="prepare_base",
    version=1,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
    execute=execute,
    content_digests=content_digests,
)
