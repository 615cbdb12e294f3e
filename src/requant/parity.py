"""A model folder measured against another one."""

from collections.abc import Iterator
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

FIDELITY_TOKENS = 256
"""Per assistant turn; with the number of rows it bounds the log-probabilities in memory."""


def compare_folders(
    reference: Path, candidate: Path, heldout: Path, *, rows: int, device: str
) -> Fidelity:
    """Measure a candidate against a reference, one model in memory at a time.

    Args:
        reference: Model folder; its tokenizer is used.
        candidate: Model folder with the same vocabulary.
        heldout: File of conversations; the first `rows` are used.
        rows: How many, and how many assistant turns at most.
        device: cpu or cuda.

    Raises:
        ContractError: If no row has an answer, or the vocabularies differ.
    """
    batches = batches_for(reference, heldout, rows)
    return compare_log_probs(
        list(folder_log_probs(reference, batches, device)),
        folder_log_probs(candidate, batches, device),
        batches,
    )


def batches_for(model: Path, heldout: Path, rows: int) -> list[Batch]:
    """Encode up to `rows` assistant turns of held-out text with a model's tokenizer."""
    conversations = read_rows(heldout, rows)
    return held_out_batches(load_tokenizer(model), conversations, FIDELITY_TOKENS)[:rows]


def folder_log_probs(
    folder: Path, batches: list[Batch], device: str, *, adapter: Path | None = None
) -> Iterator["torch.Tensor"]:
    """Load a model, with an adapter beside its weights where one is given, and run it.

    As a list the results outlive the model, so that two models are never in memory together: where
    one just fits, two do not. Keep one list at a time; with a vocabulary of 152,000 each token
    takes 0.6 MB.

    Yields:
        As `token_log_probs`.
    """
    model = load_model(folder, device)
    if adapter is not None:
        if set(getattr(model, "hf_device_map", {}).values()) & {"cpu", "disk"}:
            # DoRA reads weights of its base past the hooks that would fetch them.
            model = load_model(folder, "cpu")
        model = _with_adapter(model, adapter)
    yield from token_log_probs(model, batches)
    del model
    clear_memory()


def _with_adapter(model: Any, adapter: Path) -> Any:
    import_gptqmodel()
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def size_ratio(folder: Path, original: Path) -> float:
    """Bytes of the weights of `folder` over those of `original`."""
    return _weight_bytes(folder) / _weight_bytes(original)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
