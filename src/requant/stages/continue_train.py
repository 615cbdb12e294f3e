"""continue_train: further training of the merged 16-bit model."""

from pathlib import Path
from typing import Any

from requant.config.sections import ContinueTrain
from requant.errors import ContractError
from requant.model_folder import copy_companions, stored_dtype
from requant.stage import Metrics, Stage, StageContext


def execute(section: ContinueTrain, context: StageContext, *, model: Path, data: Path) -> Metrics:
    """Train all weights, or the top blocks with the final norm, and save in the input's dtype.

    Args:
        section: Scope and duration.
        context: Of the stage; `context.work` keeps the checkpoints.
        model: 16-bit model artifact.
        data: Dataset artifact.

    Raises:
        ContractError: If `layers` is more than the model has.
        TerminalError: As `fine_tune`.
    """
    from transformers import set_seed

    from requant.models import load_model, load_tokenizer
    from requant.training import fine_tune

    set_seed(context.seed)
    network = load_model(model, context.device, trainable=True)
    select_trainable(network, section.layers if section.scope == "top_layers" else None)
    tokenizer = load_tokenizer(model)
    metrics = fine_tune(network, tokenizer, data, section.optimisation, context)
    network.to(stored_dtype(model)).save_pretrained(context.out)
    copy_companions(model, context.out, with_index=False)
    return metrics


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
    beside = modules[found.rpartition(".")[0]].children()
    norms = [child for child in beside if "norm" in type(child).__name__.lower()]
    return lists[found], norms[-1:]


STAGE = Stage(
    name="continue_train",
    version=2,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "trl", "accelerate", "bitsandbytes"),
    execute=execute,
    data_parallel=True,
)
