"""Weights that say nothing: no numbers, or zeros alone; found where they come in."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ConfigError
from requant.models.headers import TORCH_NAMES, read_shard_header
from requant.wording import few

if TYPE_CHECKING:
    import torch


def check_finite(origin: str, files: Iterable[Path]) -> None:
    """Refuse weights of a user's that hold NaN or infinity.

    Args:
        origin: The field or option that names them, and its value.
        files: *.safetensors.

    Raises:
        ConfigError: With the first of the tensors, their files and how much of each is broken.
    """
    _refuse_broken(origin, broken_tensors(files))


def check_base_weights(origin: str, files: Iterable[Path], *, zero_matrices: bool) -> list[str]:
    """Refuse weights of a base that hold NaN or infinity, and matrices of zeros alone.

    A matrix of zeros is what a copy that was cut short, or a save that never ran, leaves behind.

    Args:
        origin: The field that names the base, and its value.
        files: *.safetensors.
        zero_matrices: Whether the base is meant to have them.

    Returns:
        The matrices of zeros, where they are meant.

    Raises:
        ConfigError: As `check_finite`, and with the first of the matrices of zeros.
    """
    broken, zero = [], []
    for name, path, tensor in _floating(files):
        if fault := _brokenness(name, path, tensor):
            broken.append(fault)
        elif tensor.dim() > 1 and tensor.numel() and not tensor.any():
            zero.append(f"{name} of {path.name}")
    _refuse_broken(origin, broken)
    if zero and not zero_matrices:
        raise ConfigError(
            f"{origin}: {len(zero)} matrices hold nothing but zeros: {few(zero)}; copy the weights "
            "anew, or, where the model is meant so, set prepare_base.zero_matrices=allow"
        )
    return zero


def broken_tensors(files: Iterable[Path]) -> list[str]:
    """Name each tensor that holds NaN or infinity, its file and how many of its numbers they are.

    Reads every byte, one tensor at a time.

    Args:
        files: *.safetensors.
    """
    found = (_brokenness(*each) for each in _floating(files))
    return [fault for fault in found if fault]


def _floating(files: Iterable[Path]) -> Iterator[tuple[str, Path, "torch.Tensor"]]:
    from safetensors import safe_open

    for path in files:
        tensors = read_shard_header(path).tensors.items()
        with safe_open(path, framework="pt") as file:
            for name, header in tensors:
                if header.dtype in TORCH_NAMES:
                    yield name, path, file.get_tensor(name)


def _brokenness(name: str, path: Path, tensor: "torch.Tensor") -> str | None:
    count = tensor.numel() - int(tensor.isfinite().sum())
    return f"{name} of {path.name} ({count} of {tensor.numel()} numbers)" if count else None


def _refuse_broken(origin: str, broken: list[str]) -> None:
    if broken:
        raise ConfigError(
            f"{origin}: {len(broken)} tensors hold NaN or infinity: {few(broken)}; copy the "
            "weights anew, or give a model whose weights are whole"
        )
