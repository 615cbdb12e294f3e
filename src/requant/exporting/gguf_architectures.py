"""The networks that are written as GGUF, and what llama.cpp wants to know of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.models.generation import GENERATION_NAME
from requant.models.origin import origin_of
from requant.outside.json_text import read_object
from requant.wording import shown

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type -> gguf.MODEL_ARCH."""
WAY_OUT = (
    "export --format compressed-tensors, or convert the 16-bit model with llama.cpp's own "
    "convert_hf_to_gguf.py"
)
ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}
"""Field of config.json -> the values for which llama.cpp computes the same network."""


def check_network(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the name of a network in gguf.MODEL_ARCH.

    Raises:
        ContractError: If it is none of `ARCHITECTURES`, or computes something else than llama.cpp
            would, naming the field.
    """
    path = folder / "config.json"
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ContractError(
            f"{path}: model_type={shown(kind)}; expected one of {', '.join(ARCHITECTURES)}, which "
            f"are written as GGUF: {WAY_OUT}"
        )
    for field, values in ONLY.items():
        if field in config and config[field] not in values:
            raise ContractError(
                f"{path}: {field}={shown(config[field])}; expected {shown(values[0])}, the one "
                f"that is written as GGUF: {WAY_OUT}"
            )
    rope = _rope(config)
    if rope.get("rope_type", "default") != "default":
        raise ContractError(
            f"{path}: rope_type={shown(rope['rope_type'])}; expected 'default', the one that is "
            f"written as GGUF: {WAY_OUT}"
        )
    return ARCHITECTURES[kind]


def add_network(writer: "GGUFWriter", config: Any) -> None:
    """Write the sizes of a network.

    Args:
        writer: Of the file.
        config: transformers' configuration of it, in which nothing is left to a default.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(_rope(config.to_dict())["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_description(writer: "GGUFWriter", folder: Path, config: Any) -> None:
    """Write name, licence and how answers are sampled, as far as the folder says them."""
    origin = origin_of(folder)
    writer.add_type("model")
    writer.add_name(origin.get("repo", "").rpartition("/")[2] or config.model_type)
    for field, value in origin.items():
        if field.startswith("license"):
            getattr(writer, f"add_{field}")(value)
    if "repo" in origin:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, origin["repo"].rpartition("/")[2])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{origin['repo']}")
    path = folder / GENERATION_NAME
    generation = read_object(path) if path.exists() else {}
    if generation.get("do_sample"):
        for field, name in SAMPLING.items():
            if generation.get(field) is not None:
                getattr(writer, f"add_sampling_{name}")(generation[field])


SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Field of generation_config.json -> GGUF's."""


def rope_rows(rows: "torch.Tensor", name: str, config: Any) -> "torch.Tensor":
    """Bring the rows of a query or key projection into the order of llama.cpp's rotation.

    transformers turns row i of a head together with row i + d/2, llama.cpp's `llama` with its
    neighbour; Qwen's networks keep the order. Groups lie along the columns and do not notice.

    Args:
        rows: [heads * d, ...], of weights, codes or scales.
        name: Of the tensor in the model's files.
        config: transformers' configuration.
    """
    if config.model_type != "llama":
        return rows
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return rows
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, -1).transpose(1, 2).reshape(rows.shape)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how positions are turned, as transformers 5 or an older release wrote it."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = found.get("rope_type") or found.get("type") or "default"
    theta = found.get("rope_theta") or config.get("rope_theta")
    return {**found, "rope_type": kind, "rope_theta": theta}
