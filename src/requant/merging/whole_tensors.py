"""What an adapter stores itself, not as a change: tensors trained whole, and rows of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from requant.adapters.folder import (
    CONFIG_NAME,
    PREFIX,
    TOKEN_ROWS,
    WEIGHTS_NAME,
    Adapter,
    is_one,
    locate,
    plain_name,
    split_names,
)
from requant.errors import ContractError
from requant.merging.updates import Apply, Update, chained, replaced
from requant.models.headers import TensorHeader
from requant.wording import few

if TYPE_CHECKING:
    import torch

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings")
"""What models call their embedding."""


def find_weight(names: Iterable[str], layers: Iterable[str], otherwise: str) -> str:
    """Return the first weight of a layer of one of these names."""
    weights = [f"{layer}.weight" for layer in layers]
    return next((name for name in names if is_one(name, weights)), otherwise)


def token_rows(adapter: Adapter) -> dict[str, str]:
    """Return the modules rows of which were trained, and what the adapter calls the rows."""
    return {
        plain_name(name).removesuffix(f".{TOKEN_ROWS}"): name
        for name in adapter.tensors
        if name.endswith(f".{TOKEN_ROWS}")
    }


def replacing_updates(adapter: Adapter, original: Mapping[str, TensorHeader]) -> dict[str, Update]:
    """Say which tensors an adapter replaces: `modules_to_save`, biases, a resized embedding."""
    _, whole = split_names(adapter.tensors)
    weights = adapter.folder / WEIGHTS_NAME
    return {
        locate(name, original): replaced(weights, PREFIX + key, adapter.tensors[key].shape)
        for name, key in whole.items()
    }


def with_token_rows(
    adapter: Adapter, updates: Mapping[str, Update], original: Mapping[str, TensorHeader]
) -> dict[str, Update]:
    """Put trained rows over what an adapter does otherwise: peft stores the rows themselves.

    Args:
        adapter: Of peft_type TRAINABLE_TOKENS, or LORA with trainable_token_indices.
        updates: What it does besides.
        original: Tensor name to header, with the names as in its files.

    Raises:
        ContractError: If the rows are not those the configuration names, or lie past the end.
    """
    found = token_rows(adapter)
    asked = _asked_tokens(adapter.config)
    for layers, _ in asked:
        if not any(is_one(module, layers) for module in found):
            raise ContractError(
                f"{adapter.folder / WEIGHTS_NAME}: holds no rows for the tokens of {layers[0]}, "
                f"which {CONFIG_NAME} asks for; the file is incomplete: train the adapter again"
            )
    merged = dict(updates)
    for module, name in found.items():
        own = (indices for layers, indices in asked if is_one(module, layers))
        # The layer tied to the embedding has its rows without being named.
        indices = next(own, asked[0][1] if asked else ())
        tensor = locate(f"{module}.weight", original)
        before = merged.get(tensor)
        # A tied output layer is not in the file; it has the embedding's rows.
        twin = find_weight(original, EMBEDDINGS, tensor)
        whole = before or original.get(tensor) or original.get(twin)
        shape = whole.shape if whole else ()
        _check_rows(adapter, name, indices, shape)
        merged[tensor] = chained(before, _rows(adapter, name, indices, shape))
    return merged


def _asked_tokens(
    config: Mapping[str, Any],
) -> list[tuple[tuple[str, ...], Sequence[int]]]:
    """Names a layer may have, and the token ids whose rows of it were trained, in their order."""
    if config["peft_type"] == "LORA":
        asked = config.get("trainable_token_indices") or {}
        layers = None
    else:
        asked, layers = config["token_indices"], config.get("target_modules")
    if isinstance(asked, dict):
        return [((layer,), indices) for layer, indices in asked.items()]
    if layers is None:
        return [(EMBEDDINGS, asked)]
    return [((layer,), asked) for layer in ([layers] if isinstance(layers, str) else layers)]


def _check_rows(
    adapter: Adapter, name: str, indices: Sequence[int], shape: tuple[int, ...]
) -> None:
    rows = adapter.tensors[name].shape
    if rows[0] != len(indices):
        raise ContractError(
            f"{adapter.folder}: {name} has {rows[0]} rows, {CONFIG_NAME} names {len(indices)} "
            "tokens; the two files do not belong together"
        )
    if rows[1:] != shape[1:]:
        raise ContractError(
            f"{adapter.folder}: {name} is {list(rows)}, the original's tensor {list(shape)}; it "
            "was trained on another base"
        )
    if past := [str(index) for index in indices if not 0 <= index < shape[0]]:
        raise ContractError(
            f"{adapter.folder}: {name}: token {few(past)} has no row, the embedding has "
            f"{shape[0]}; save the resized embedding with the adapter (peft: "
            "save_embedding_layers=True)"
        )


def _rows(adapter: Adapter, name: str, indices: Sequence[int], shape: tuple[int, ...]) -> Update:
    def open_rows() -> Apply:
        trained = adapter.load(name)

        def apply(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
            for row, index in zip(trained, indices, strict=True):
                if rows.start <= index < rows.stop:
                    weight[index - rows.start] = row
            return weight

        return apply

    return Update(shape, open_rows)
