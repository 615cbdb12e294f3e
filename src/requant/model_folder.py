"""The files of a Hugging Face model folder that are not weights."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from requant.store.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"


def copy_companions(source: Path, out: Path, *, with_index: bool) -> None:
    """Copy config, tokenizer, chat template and generation config, byte for byte.

    Args:
        source: Model folder or artifact.
        out: Existing folder; files of the same name are replaced.
        with_index: Whether the shard index still describes the weights in `out`.
    """
    skipped = {MANIFEST_NAME} if with_index else {MANIFEST_NAME, INDEX_NAME}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in skipped:
            shutil.copyfile(path, out / path.name)


def stored_dtype(folder: Path) -> "torch.dtype":
    """Return the dtype of the floating weights in a folder, from the first one's header."""
    from safetensors import safe_open

    shard = min(folder.glob("*.safetensors"))
    with safe_open(shard, framework="pt") as file:
        names = list(file.keys())
        dtypes = (file.get_tensor(name).dtype for name in names)
        return next(dtype for dtype in dtypes if dtype.is_floating_point)


def set_dtype(folder: Path, dtype: str) -> None:
    """Write the dtype of the weights, e.g. bfloat16, into config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # transformers 5 writes `dtype` and reads `torch_dtype` too; keep the spelling that is there.
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    path.write_text(json.dumps({**config, name: dtype}, indent=2) + "\n")
