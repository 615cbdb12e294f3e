"""A model folder measured against another one."""

from pathlib import Path

from requant.conversation import read_rows
from requant.fidelity import Fidelity, compare_log_probs, held_out_batches, token_log_probs
from requant.models import clear_memory, load_model, load_tokenizer

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
    batches = held_out_batches(load_tokenizer(reference), read_rows(heldout, rows), FIDELITY_TOKENS)
    expected = list(token_log_probs(load_model(reference, device), batches))
    clear_memory()
    return compare_log_probs(
        expected, token_log_probs(load_model(candidate, device), batches), batches
    )


def size_ratio(folder: Path, original: Path) -> float:
    """Bytes of the weights of `folder` over those of `original`."""
    return _weight_bytes(folder) / _weight_bytes(original)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
