"""Weights that are no numbers: found where they come in, named by tensor and file."""

from collections.abc import Iterable
from pathlib import Path

from requant.errors import ConfigError
from requant.models.headers import TORCH_NAMES, read_shard_header
from requant.wording import few


def check_finite(origin: str, files: Iterable[Path]) -> None:
    """Refuse weights of a user's that hold NaN or infinity.

    Args:
        origin: The field or option that names them, and its value.
        files: *.safetensors.

    Raises:
        ConfigError: With the first of the tensors, their files and how much of each is broken.
    """
    if broken := broken_tensors(files):
        raise ConfigError(
            f"{origin}: {len(broken)} tensors hold NaN or infinity: {few(broken)}; copy the "
            "weights anew, or give a model whose weights are whole"
        )


def broken_tensors(files: Iterable[Path]) -> list[str]:
    """Name each tensor that holds NaN or infinity, its file and how many of its numbers they are.

    Reads every byte, one tensor at a time.

    Args:
        files: *.safetensors.
    """
    from safetensors import safe_open

    broken = []
    for path in files:
        floating = [
            name
            for name, header in read_shard_header(path).tensors.items()
            if header.dtype in TORCH_NAMES
        ]
        with safe_open(path, framework="pt") as file:
            for name in floating:
                tensor = file.get_tensor(name)
                if count := tensor.numel() - int(tensor.isfinite().sum()):
                    broken.append(f"{name} of {path.name} ({count} of {tensor.numel()} numbers)")
    return broken
