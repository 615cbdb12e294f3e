"""Folders and texts that the commands without a pipeline are given, looked at before they read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.comparison.batches import file_batches
from requant.machine.looking import MEMORY, Look, Watch, look
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import read_headers
from requant.models.skeleton import check_network
from requant.preflight.base import LOADING_SECONDS
from requant.preflight.data import MEMORY_PER_BYTE


def refuse_unreadable(
    models: Mapping[str, Path], text: Path | None = None, sequences: int = 0
) -> None:
    """Build the networks of models and encode a text with the first one's tokenizer, elsewhere.

    Args:
        models: Option -> model folder.
        text: As `requant.comparison.batches.file_batches`.
        sequences: Of the text; 0 for none.

    Raises:
        RequantError: As the functions that read them, or naming what never ends.
    """
    size = text.stat().st_size if text is not None and text.is_file() else 0
    argument = {
        "models": {option: str(folder) for option, folder in models.items()},
        "text": str(text) if text is not None else None,
        "sequences": sequences,
    }
    look(Look(f"{__name__}:{look_from_child.__name__}", argument, MEMORY + MEMORY_PER_BYTE * size))


def look_from_child(argument: dict[str, Any], watch: Watch) -> None:
    """Read what was named; in the process of `requant.machine.looking`."""
    models = {option: Path(folder) for option, folder in argument["models"].items()}
    for option, folder in models.items():
        watch(f"{option} {folder}: its network", LOADING_SECONDS)
        if quantization_of(read_model_config(folder)) is None:
            check_network(folder)
        else:
            read_headers(folder)
    if argument["sequences"]:
        first = next(iter(models.values()))
        text = argument["text"] and Path(argument["text"])
        watch(
            f"--text {text or 'of Python itself'}, through chat template and tokenizer of {first}",
            LOADING_SECONDS,
        )
        file_batches(first, text, argument["sequences"])
