"""A model folder measured against another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.conversation import read_rows
from requant.fidelity import (
    Batch,
    Fidelity,
    compare_log_probs,
    held_out_batches,
    token_log_probs,
)
from requant.models import clear_memory, import_gptqmodel, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

FIDELITY_TOKENS = 512
"""Per held-out row; bounds the log-probabilities kept in memory."""


def compare_folders(
    reference: Path, candidate: Path, heldout: Path, *, rows: int, device: str
) -> Fidelity:
    """Measure a candidate against a reference, one model in memory at a time.

    Args:
        reference: Model folder; its tokenizer is used.
        candidate: Model folder with the same vocabulary.
        heldout: File of conversations; the first `rows` are used.
        rows: How many.
        device: cpu or cuda.

    Raises:
        ContractError: If no row has an answer, or the vocabularies differ.
    """
    batches = batches_for(reference, heldout, rows)
    return compare_log_probs(
        folder_log_probs(reference, batches, device),
        folder_log_probs(candidate, batches, device),
        batches,
    )


def batches_for(model: Path, heldout: Path, rows: int) -> list[Batch]:
    """Encode the first `rows` held-out conversations with a model's tokenizer."""
    return held_out_batches(load_tokenizer(model), read_rows(heldout, rows), FIDELITY_TOKENS)


def folder_log_probs(
    folder: Path, batches: list[Batch], device: str, *, adapter: Path | None = None
) -> list["torch.Tensor"]:
    """Load a model, with an adapter beside its weights where one is given, and run it.

    The results outlive the model, so that two models are never in memory together: where one just
    fits, two do not.

    Returns:
        As `token_log_probs`.
    """
    model = load_model(folder, device)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    log_probs = list(token_log_probs(model, batches))
    del model
    clear_memory()
    return log_probs


def _with_adapter(model: Any, adapter: Path) -> Any:
    import_gptqmodel()
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def size_ratio(folder: Path, original: Path) -> float:
    """Bytes of the weights of `folder` over those of `original`."""
    return _weight_bytes(folder) / _weight_bytes(original)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
