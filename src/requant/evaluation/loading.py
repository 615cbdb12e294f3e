"""Models of one evaluation that share their weights, loaded once."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Load = Callable[[Path, Path | None], Any]
"""Loads a model folder, with an adapter beside its weights where one is given."""


def shared_loads(device: str, apart: Collection[Path]) -> Load:
    """Make what loads the models of an evaluation, a model and itself under an adapter once.

    What was loaded alone is kept until the next one is wanted; under an adapter it is another
    model, since the adapter's layers are put into it.

    Args:
        device: cpu or cuda.
        apart: Folders whose model goes on answering by itself, and is not to be changed.
    """
    from requant.models.load import corrected, load_model, with_adapters

    kept: dict[Path, Any] = {}

    def load(folder: Path, adapter: Path | None) -> Any:
        known = kept.pop(folder, None)
        # One in memory at a time.
        kept.clear()
        model = load_model(folder, device) if known is None else known
        if adapter is not None:
            return with_adapters(model, [(adapter, 1.0)])
        if folder not in apart:
            kept[folder] = model
        return corrected(model, folder)

    return load
