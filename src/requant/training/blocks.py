"""Which blocks of a model are trained: all of it, or those at the top."""

from typing import Any

from requant.errors import ContractError


def select_trainable(model: Any, layers: int | None) -> None:
    """Let gradients reach all parameters, or only the top `layers` blocks and the final norm.

    The head stays frozen with `layers`: where it is tied, training it would move the embeddings
    below every frozen block.

    Raises:
        ContractError: If the model has fewer blocks, or none are found.
    """
    if layers is None:
        model.requires_grad_(True)
        return
    blocks, norm = find_blocks(model)
    if layers > len(blocks):
        raise ContractError(
            f"continue_train.layers: got {layers}, the model has {len(blocks)} blocks; "
            f"give 1 to {len(blocks)}"
        )
    model.requires_grad_(False)
    for block in [*blocks[-layers:], *norm]:
        block.requires_grad_(True)


def find_blocks(model: Any) -> tuple[Any, list[Any]]:
    """Find a causal language model's transformer blocks and final norm, whatever they are called.

    The blocks are the outermost ModuleList of as many modules as config.json says there are; the
    final norm is the last norm defined beside it (the embedding's, of BLOOM, comes before).

    Returns:
        The ModuleList, and the final norm in a list; an empty one where the model has none.

    Raises:
        ContractError: Naming the lists of modules there are.
    """
    from torch.nn import ModuleList

    wanted = model.config.get_text_config().num_hidden_layers
    modules = dict(model.base_model.named_modules())
    lists = {name: module for name, module in modules.items() if isinstance(module, ModuleList)}
    found = next((name for name, module in lists.items() if len(module) == wanted), None)
    if found is None:
        held = ", ".join(f"{name} ({len(module)})" for name, module in lists.items())
        raise ContractError(
            f"continue_train.scope: 'top_layers' finds no list of {wanted} blocks in "
            f"{type(model).__name__} (lists: {held or 'none'}); set continue_train.scope=full"
        )
    siblings = modules[found.rpartition(".")[0]].children()
    norms = [child for child in siblings if "norm" in type(child).__name__.lower()]
    return lists[found], norms[-1:]
