"""The pairing contract: a quantized model and its original are the same network. Files only."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.errors import ArtifactError, ContractError
from requant.json_file import read_object
from requant.models.folder import INDEX_NAME
from requant.models.headers import Shape, logical_shapes, read_headers, read_index
from requant.models.load import read_model_config

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
"""Of config.json: what decides the function the tensors compute. A field that only one of the two
spells out is passed over, because releases of transformers spell them differently."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
NAMED = 5
"""Tensors named in an error before the rest is counted."""


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
                f"{index}: names {some(lacking)}, which no *.safetensors beside it holds; "
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
        f"{name}: original {ours[name]!r}, quantized {theirs[name]!r}"
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
    padded = theirs.get("intermediate_size", 0) > ours.get("intermediate_size", 0)
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
    if len(differences) > NAMED:
        differences[NAMED:] = [f"and {len(differences) - NAMED} more shapes"]
    if lacking := sorted(ours.keys() - theirs.keys()):
        differences.append(f"missing in the quantized model: {some(lacking)}")
    if added := sorted(theirs.keys() - ours.keys()):
        differences.append(f"not in the original: {some(added)}")
    return differences


def some(names: Iterable[str]) -> str:
    """Name the first few and count the rest."""
    listed = list(names)
    rest = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def tokenizer_digest(folder: Path) -> str:
    """Digest what turns a conversation into token ids, whatever way it is written down.

    Returns:
        sha256 (64 hex digits) over vocabulary, merges and rules, special tokens and chat template.

    Raises:
        ArtifactError: If the folder has no tokenizer.
    """
    content = {
        "tokenizer": _tokenizer_content(folder),
        "special": _special_tokens(folder),
        "template": chat_template(folder),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def same_tokens(first: Path, second: Path) -> bool:
    """Tell whether two folders turn text into the same token ids, chat templates aside."""
    ids = token_ids(first), token_ids(second)
    if all(ids):
        return ids[0] == ids[1]
    return _tokenizer_content(first) == _tokenizer_content(second)


def _tokenizer_content(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if path.exists():
        # Parsed and written by the library: releases differ in how they spell merges and defaults.
        from tokenizers import Tokenizer

        try:
            content: dict[str, Any] = json.loads(Tokenizer.from_file(str(path)).to_str())
        except Exception as error:  # the library raises no narrower one
            raise ArtifactError(f"{path}: is no tokenizer: {error}; copy it anew") from error
        # Leftovers of the last call that encoded text.
        return {
            name: value for name, value in content.items() if name not in {"padding", "truncation"}
        }
    found = [folder / name for name in VOCABULARY_FILES if (folder / name).exists()]
    if not found:
        raise ArtifactError(
            f"{folder}: has no tokenizer (tokenizer.json, vocab.json or tokenizer.model); "
            "copy it from the original model"
        )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _special_tokens(folder: Path) -> dict[str, str]:
    config = _read_optional(folder / "tokenizer_config.json")
    found = {name: config.get(name) for name in SPECIAL_TOKENS}
    return {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in found.items()
        if token is not None
    }


def chat_template(folder: Path) -> str | None:
    """Return a model folder's chat template, or None."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    template = _read_optional(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).exists() for name in ("tokenizer.json", *VOCABULARY_FILES[::2]))


def token_ids(folder: Path) -> dict[str, int]:
    """Return token to id, added tokens included; empty for a sentencepiece file alone."""
    content = _tokenizer_content(folder)
    vocabulary = content.get("model", {}).get("vocab", {})
    # Unigram models list [piece, score] pairs, the position being the id.
    ids = (
        {piece: index for index, (piece, _) in enumerate(vocabulary)}
        if isinstance(vocabulary, list)
        else dict(vocabulary)
    )
    return ids | {token["content"]: token["id"] for token in content.get("added_tokens", ())}


def _read_optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}
