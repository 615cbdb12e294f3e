"""What an adapter means for the tensors with a row per token, embedding and output layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requant.adapters.folder import Adapter
from requant.errors import ContractError
from requant.merging.updates import Update
from requant.merging.whole_tensors import EMBEDDINGS, find_weight, token_rows
from requant.models.headers import TensorHeader
from requant.models.tokenizer import has_tokenizer, token_ids, tokenizer_digest

OUTPUT_LAYERS = ("lm_head", "embed_out")
COMPARED_ROWS = 4096
"""Rows of the vocabulary in memory at a time."""
ALIKE = 1e-3
"""Share of an update that another one may differ by and be the same, summed in another order."""
FLOAT32_NOISE = 2**-22
"""What subtracting weights between 0 and 1 leaves of float32."""


@dataclass(frozen=True)
class Vocabulary:
    """What must happen to a model besides its updates; nothing by default."""

    added: Mapping[str, str] = field(default_factory=dict)
    """New tensor to the tensor it starts from."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json that change."""
    tokenizer: Path | None = None
    """Folder whose tokenizer the merged model gets; None for the original's."""


def settle_vocabulary(
    adapter: Adapter,
    updates: Mapping[str, Update],
    original: Path,
    headers: Mapping[str, TensorHeader],
    config: Mapping[str, Any],
    *,
    untie: bool,
) -> tuple[dict[str, Update], Vocabulary]:
    """Decide what becomes of embedding, output layer and tokenizer.

    Args:
        adapter: The adapter.
        updates: What it does to the tensors of the original.
        original: Model folder.
        headers: Of its tensors.
        config: Of its config.json.
        untie: Whether an output layer that is tied to the embedding may become one of its own.

    Returns:
        The updates without a copy that only repeats a tied tensor, and what else must happen.

    Raises:
        ContractError: If only one of two tied tensors was trained and `untie` is false, if the two
            end with different numbers of rows, or if tokenizer and rows do not agree.
    """
    names: dict[str, TensorHeader | Update] = {**headers, **updates}
    embedding = find_weight(names, EMBEDDINGS, "model.embed_tokens.weight")
    output = find_weight(names, OUTPUT_LAYERS, "lm_head.weight")
    kept = dict(updates)
    changes: dict[str, Any] = {}
    added: dict[str, str] = {}
    tied = bool(config.get("tie_word_embeddings", output not in headers))
    if tied and {embedding, output} & updates.keys():
        both = {embedding, output} <= updates.keys()
        alike = both and _acts_alike(updates[embedding], updates[output])
        # Of those rows peft ties the output layer's to the embedding's.
        of_tokens = embedding.removesuffix(".weight") in token_rows(adapter)
        if alike or (not both and of_tokens):
            kept.pop(output, None)
            # A file that holds both is read as two tensors unless they stay equal.
            if output in headers:
                kept[output] = updates[embedding]
        else:
            _check_may_untie(adapter, updates, embedding, output, untie)
            changes["tie_word_embeddings"] = False
            tied = False
            if output not in headers:
                added[output] = embedding
    rows = {
        name: names[name].shape[0] if name not in kept else kept[name].shape[0]
        for name in ((embedding,) if tied else (embedding, output))
        if name in names
    }
    if len(set(rows.values())) > 1:
        raise ContractError(
            f"{adapter.folder}: after merging {embedding} has {rows[embedding]} rows and {output} "
            f"{rows[output]}; save both with the adapter (peft: modules_to_save, or "
            "save_embedding_layers=True)"
        )
    tokenizer = None
    if embedding in headers:
        before = headers[embedding].shape[0]
        after = rows.get(embedding, before)
        if after != before:
            changes["vocab_size"] = after
        tokenizer = _settle_tokenizer(adapter, original, before, after)
    return kept, Vocabulary(added, changes, tokenizer)


def is_vocabulary(name: str) -> bool:
    """Tell whether a tensor has a row for each token."""
    return name.split(".")[-2:-1] in ([leaf] for leaf in EMBEDDINGS + OUTPUT_LAYERS)


def _acts_alike(first: Update, second: Update) -> bool:
    """Tell whether two updates do the same to any weight, but for the order of float32 sums."""
    import torch

    if first.shape != second.shape:
        return False
    rows = first.shape[0]
    step = COMPARED_ROWS if first.by_rows and second.by_rows else rows
    opened = first.open(), second.open()
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        shape = (part.stop - part.start, *first.shape[1:])
        weight = torch.rand(shape, generator=generator)
        one, other = (apply(weight.clone(), part) - weight for apply in opened)
        # Of what they add: two small updates would be alike beside the weights.
        if float((one - other).abs().max()) > ALIKE * float(one.abs().max()) + FLOAT32_NOISE:
            return False
    return True


def _check_may_untie(
    adapter: Adapter, updates: Mapping[str, Update], embedding: str, output: str, untie: bool
) -> None:
    if untie:
        return
    trained = " and ".join(sorted({embedding, output} & updates.keys()))
    raise ContractError(
        f"{adapter.folder}: trained {trained}, but {embedding} and {output} of the original are "
        "tied (tie_word_embeddings): merged into the one tensor the update would act twice. Set "
        "merge_fp16.untie=true (requant merge: --untie) to give the model an output layer of its "
        "own, or train without them"
    )


def _settle_tokenizer(adapter: Adapter, original: Path, before: int, after: int) -> Path | None:
    folder = adapter.folder
    if not has_tokenizer(folder):
        if after != before:
            raise ContractError(
                f"{folder}: its embedding has {after} rows, the original {before}, and it brings "
                "no tokenizer; save the tokenizer that was trained with into the adapter's folder"
            )
        return None
    ours, theirs = token_ids(original), token_ids(folder)
    tokens = max(theirs.values(), default=-1) + 1
    if tokens > after:
        raise ContractError(
            f"{folder}: its tokenizer has {tokens} tokens and the merged embedding {after} rows; "
            "save the resized embedding with the adapter (peft: save_embedding_layers=True)"
        )
    grown = len(theirs) > len(ours) and ours.items() <= theirs.items()
    if grown or after != before:
        return folder
    if tokenizer_digest(folder) != tokenizer_digest(original):
        raise ContractError(
            f"{folder}: its tokenizer is not the original's (vocabulary, merges, special tokens or "
            "chat template differ); it was trained with another one. Merge it into the model of "
            "that tokenizer, or delete its tokenizer files to keep the original's"
        )
    return None
