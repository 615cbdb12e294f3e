"""Weights that were trained whole, written into the files they came from."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from requant.adapters.folder import locate
from requant.errors import ContractError
from requant.merging.change import Change
from requant.merging.companions import write_companions
from requant.merging.stream import write_merged
from requant.merging.updates import Update, replaced
from requant.models.headers import TORCH_NAMES, TensorHeader, read_headers
from requant.models.skeleton import read_skeleton
from requant.wording import few


def write_trained(
    model: Path,
    trained: Path,
    out: Path,
    *,
    tied: Sequence[Collection[str]],
    dtype: str | None = None,
) -> dict[str, Change]:
    """Write a model folder anew with other weights in it, each rounded once to its own dtype.

    Shards, their metadata and what the network does not load stay as they are; see `write_merged`.

    Args:
        model: The folder that was trained.
        trained: What `save_pretrained` wrote of it, in float32.
        out: Existing folder.
        tied: Groups of names that are one tensor of the network; see `tied_names`.
        dtype: torch name of the floating dtype to write; None keeps each tensor's own.

    Returns:
        Tensor to what changed in it.

    Raises:
        ContractError: If a trained tensor has no place in the files, or one of the files that the
            network loads was not saved.
        ParityError: If a weight is not finite in its dtype.
    """
    updates = _updates(model, read_headers(model), read_headers(trained), tied)
    changes = write_merged(model, updates, out, dtype=dtype)
    write_companions(model, out, {"dtype": dtype} if dtype else {})
    return changes


def tied_names(network: Any) -> list[set[str]]:
    """Group the names of a network's parameters that are one tensor."""
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        groups[id(parameter)].add(name)
    return [names for names in groups.values() if len(names) > 1]


def _updates(
    model: Path,
    stored: Mapping[str, TensorHeader],
    trained: Mapping[str, TensorHeader],
    tied: Sequence[Collection[str]],
) -> dict[str, Update]:
    names = {locate(name, stored): name for name in trained}
    for group in tied:
        # Some files hold both of two tied tensors; save_pretrained writes one.
        places = {locate(name, stored) for name in group}
        written = [names[place] for place in places if place in names]
        names |= dict.fromkeys(places & stored.keys() - names.keys(), *written[:1])
    if strange := sorted(
        place
        for place, name in names.items()
        if place not in stored or stored[place].shape != trained[name].shape
    ):
        raise ContractError(
            f"{model}: has no place for what was trained in {few(strange)}; its config.json is "
            "not that of its weights"
        )
    unmatched = stored.keys() - names.keys()
    if unmatched and (lost := sorted(unmatched - {*read_skeleton(model).unread})):
        raise ContractError(
            f"{model}: {few(lost)} would stay as before the training, although the network loads "
            "it; set continue_train.enabled=false and report the model's architecture"
        )
    return {
        place: replaced(trained[name].file, name, trained[name].shape)
        for place, name in names.items()
        if stored[place].dtype in TORCH_NAMES
    }
