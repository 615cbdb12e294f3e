"""The tokenizer of a model folder: loaded, or told by its files alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.canonical import canonical_json
from requant.config.base import OtherFiles
from requant.errors import ArtifactError
from requant.machine.library_noise import no_library_noise
from requant.models.config import other_file
from requant.models.folder import VOCABULARY_FILES
from requant.outside.files import read_plain
from requant.outside.json_text import read_object
from requant.wording import printable, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, from its files only.

    Raises:
        ArtifactError: If tokenizer_config.json names another file than the one that is checked.
    """
    check_one_tokenizer(folder)
    with no_library_noise():
        from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    # Lengths are limited, and what is cut is counted, after encoding: its warning of "indexing
    # errors" is given once a tokenizer, and this one has been given.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def check_one_tokenizer(folder: Path) -> None:
    """Refuse a folder with another tokenizer than the tokenizer.json that is looked at.

    Raises:
        ArtifactError: Naming the field.
    """
    path = folder / "tokenizer_config.json"
    if (other := _read_optional(path).get(OTHER_TOKENIZER)) is not None:
        raise ArtifactError(other_file(path, OTHER_TOKENIZER, other, "tokenizer.json"))


OTHER_TOKENIZER: OtherFiles = "fast_tokenizer_files"
MAX_VOCABULARY = 256 << 20
"""Bytes; tokenizer.json of a quarter of a million tokens takes an eighth."""
MAX_TEMPLATE = 1 << 20
"""Bytes; the longest of a release known takes a sixtieth."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Each holds a whole vocabulary."""


def tokenizer_digest(folder: Path) -> str:
    """Digest what turns a conversation into token ids, whatever way it is written down.

    Returns:
        sha256 (64 hex digits) over vocabulary, merges and rules, special tokens and chat template.

    Raises:
        ArtifactError: If the folder has no tokenizer.
    """
    content = {
        "tokenizer": tokenizer_content(folder),
        "special": _special_tokens(folder),
        "template": chat_template(folder),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def same_tokens(first: Path, second: Path) -> bool:
    """Tell whether two folders turn text into the same token ids, chat templates aside."""
    ids = token_ids(first), token_ids(second)
    if all(ids):
        return ids[0] == ids[1]
    return tokenizer_content(first) == tokenizer_content(second)


def tokenizer_content(folder: Path) -> dict[str, Any]:
    """Return tokenizer.json as the library writes it; of other files the digests.

    Raises:
        ArtifactError: If the folder has no tokenizer, or one that the library cannot read.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        # Parsed and written by the library: releases differ in how they spell merges and defaults.
        from tokenizers import Tokenizer

        try:
            content: dict[str, Any] = json.loads(
                Tokenizer.from_buffer(read_plain(path, MAX_VOCABULARY)).to_str()
            )
        except Exception as error:  # the library raises no narrower one
            raise ArtifactError(
                f"{path}: is no tokenizer: {printable(error)[:300]}; copy it anew"
            ) from error
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
    return {
        path.name: hashlib.sha256(read_plain(path, MAX_VOCABULARY)).hexdigest() for path in found
    }


def _special_tokens(folder: Path) -> dict[str, str]:
    config = _read_optional(folder / "tokenizer_config.json")
    found = {name: config.get(name) for name in SPECIAL_TOKENS}
    texts: dict[str, str] = {}
    for name, token in found.items():
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            texts[name] = text
        elif token is not None:
            raise ArtifactError(
                f"{folder / 'tokenizer_config.json'}: {name} is {shown(token)}; expected a text, "
                "or an object with content: copy the file anew"
            )
    return texts


def chat_template(folder: Path) -> str | None:
    """Return a model folder's chat template, of several the default one; None where it has none.

    Raises:
        ArtifactError: If what stands in its place is no template.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_plain(path, MAX_TEMPLATE).decode()
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{path}: is not UTF-8 text; copy it anew") from error
    path = folder / "tokenizer_config.json"
    found = _read_optional(path).get("chat_template")
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, list) and all(map(_is_named_template, found)):
        named: dict[str, str] = {each["name"]: each["template"] for each in found}
        return named.get("default")
    raise ArtifactError(
        f"{path}: chat_template is {shown(found)}; expected a text, or a list of objects with "
        "name and template: copy the file anew"
    )


def _is_named_template(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(field), str) for field in ("name", "template")
    )


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).exists() for name in VOCABULARIES)


def token_ids(folder: Path) -> dict[str, int]:
    """Return token to id, added tokens included; empty for a sentencepiece file alone."""
    content = tokenizer_content(folder)
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
