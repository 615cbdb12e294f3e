"""Tiny models and adapters with random weights, for tests of the merge's arithmetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen3Config

from requant.models.load import import_gptqmodel

VOCABULARY = 128


def qwen(**fields: Any) -> PretrainedConfig:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(**{**sizes, **fields})


def gpt2() -> PretrainedConfig:
    return GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64)


def save_model(config: PretrainedConfig, folder: Path, **how: Any) -> Path:
    """Save a bfloat16 model with random weights and biases."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.02)
    model.save_pretrained(folder, **how)
    return folder


def save_adapter(
    base: Path, config: Any, folder: Path, *, std: float = 0.02, seed: int = 1, rows: int = 0
) -> dict[str, torch.Tensor]:
    """Save an adapter with random weights.

    Args:
        base: Model folder.
        config: peft's.
        folder: Where to.
        std: Of the noise that stands for training.
        seed: Of it.
        rows: Of the embedding, if it was resized.

    Returns:
        peft's own merge of it, in float32.
    """
    model, _ = adapted(base, config, std=std, seed=seed, rows=rows)
    model.save_pretrained(folder, save_embedding_layers=bool(rows) or "auto")
    merged: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return merged


def adapted(
    base: Path, config: Any, *, std: float = 0.02, seed: int = 1, rows: int = 0
) -> tuple[Any, Callable[[Any], Any]]:
    """A float32 model with an adapter of random weights, and a function that runs it."""
    import_gptqmodel()
    from peft import get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * std
    return model.eval(), lambda ids: model(input_ids=ids).logits
