"""Models of one evaluation that share their weights, loaded once."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Load = Callable[[Path, Path | None], Any]
"""Loads a model folder, with an adapter beside its weights where one is given."""


def shared_loads(device: str, apart: Collection[Path]) -> Load:
    """Make what loads the models of an evaluation, a model and itself under an adapter once.

    What was loaded alone is kept until the next one is wanted; under an adapter, or with the
    correction that is part of it, it is another model, since those layers are put into it.

    Args:
        device: cpu or cuda.
        apart: Folders whose model goes on answering by itself, and is not to be changed.
    """
    from requant.models.device import clear_memory
    from requant.models.load import corrected, load_model, with_adapters

    kept: dict[Path, Any] = {}

    def load(folder: Path, adapter: Path | None) -> Any:
        known = kept.pop(folder, None)
        if kept:
            # One in memory at a time; what is free decides what the next may take of a GPU.
            kept.clear()
            clear_memory()
        model = load_model(folder, device) if known is None else known
        if adapter is not None:
            return with_adapters(model, [(adapter, 1.0)])
        whole = corrected(model, folder)
        if whole is model and folder not in apart:
            kept[folder] = model
        return whole

    return load
