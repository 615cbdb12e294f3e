"""The pairing contract: a quantized model and its original are the same network. Files only."""

from collections.abc import Mapping
from pathlib import Path

from requant.errors import ArtifactError, ContractError
from requant.models.config import read_model_config
from requant.models.folder import INDEX_NAME
from requant.models.headers import Shape, logical_shapes, read_headers, read_index
from requant.models.tokenizer import chat_template, token_ids, tokenizer_digest
from requant.wording import few, few_lines, shown

ARCHITECTURE_FIELDS = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
)
"""Fields of config.json that decide the function the tensors compute. A field that only one of two
models spells out is passed over, because releases of transformers spell them differently."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is no complete chat model: what every model artifact must have.

    Raises:
        ArtifactError: As `check_complete`, or if the chat template is missing.
        ContractError: As `check_complete`.
    """
    check_complete(folder)
    if chat_template(folder) is None:
        raise ArtifactError(
            f"{folder}: has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); add the one of the model's chat variant"
        )


def check_complete(folder: Path) -> None:
    """Refuse a folder that is no complete language model.

    Raises:
        ArtifactError: If config.json, weights or tokenizer are missing, or a weights file is cut
            short.
        ContractError: If the tokenizer knows tokens that have no row in the embedding.
    """
    config = read_model_config(folder)
    check_weights(folder)
    for name in ("architectures", "vocab_size"):
        if not config.get(name):
            raise ArtifactError(f"{folder / 'config.json'}: has no {name}; not a language model")
    tokens = max(token_ids(folder).values(), default=-1) + 1
    if tokens > config["vocab_size"]:
        raise ContractError(
            f"{folder}: the tokenizer's token ids reach {tokens - 1} and config.json vocab_size="
            f"{config['vocab_size']}; resize the embedding or use the tokenizer it was trained with"
        )


def check_weights(folder: Path) -> None:
    """Refuse a folder some of whose weights are missing.

    Raises:
        ArtifactError: If weights are missing, or a weights file is cut short.
    """
    tensors = read_headers(folder)
    index = folder / INDEX_NAME
    if index.exists():
        named = read_index(folder).keys()
        if lacking := sorted(named - tensors.keys()):
            raise ArtifactError(
                f"{index}: names {few(lacking)}, which no *.safetensors beside it holds; "
                "copy the missing shards"
            )


def check_pairing(original: Path, quantized: Path) -> None:
    """Refuse a quantized model that is not this original, quantized.

    Args:
        original: Model folder in 16 or 32 bit.
        quantized: bitsandbytes NF4 or int8, or GPTQ folder.

    Raises:
        ContractError: Naming every difference of architecture, tensors and shapes, vocabulary size
            and tokenizer.
        ArtifactError: If one of the two is no complete model folder.
    """
    check_complete(original)
    check_complete(quantized)
    ours, theirs = read_model_config(original), read_model_config(quantized)
    differences = [
        f"{name}: original {shown(ours[name])}, quantized {shown(theirs[name])}"
        for name in (*ARCHITECTURE_FIELDS, "vocab_size")
        if name in ours and name in theirs and ours[name] != theirs[name]
    ]
    stored, packed = logical_shapes(original, ours), logical_shapes(quantized, theirs)
    if stored.keys() - packed.keys():
        # Buffers of old releases are in the files and not in the network that was quantized.
        for name in _unread(original):
            stored.pop(name, None)
            packed.pop(name, None)
    differences += _tensor_differences(stored, packed)
    digests = tokenizer_digest(original), tokenizer_digest(quantized)
    if digests[0] != digests[1]:
        differences.append(
            f"tokenizer digest: original {digests[0][:12]}, quantized {digests[1][:12]} "
            "(vocabulary, merges, special tokens or chat template)"
        )
    if not differences:
        return
    ours_wide, theirs_wide = (one.get("intermediate_size") for one in (ours, theirs))
    padded = isinstance(ours_wide, int) and isinstance(theirs_wide, int) and theirs_wide > ours_wide
    way_out = (
        "intermediate_size was padded when this checkpoint was quantized: an adapter trained on it "
        "does not fit the original"
        if padded
        else "an adapter trained on one does not fit the other"
    )
    raise ContractError(
        f"pairing of {original} and {quantized}:\n  "
        + "\n  ".join(differences)
        + f"\n{way_out}; quantize the original with quantize_base instead"
    )


def _unread(original: Path) -> tuple[str, ...]:
    """Name the tensors that are in a model's files and not part of its network."""
    from requant.models.skeleton import read_skeleton

    return read_skeleton(original).unread


def _tensor_differences(ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> list[str]:
    differences = [
        f"{name}: original {list(ours[name])}, quantized {list(theirs[name])}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    differences = few_lines(differences, "shapes")
    if lacking := sorted(ours.keys() - theirs.keys()):
        differences.append(f"missing in the quantized model: {few(lacking)}")
    if added := sorted(theirs.keys() - ours.keys()):
        differences.append(f"not in the original: {few(added)}")
    return differences
