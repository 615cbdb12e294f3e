"""Where models are computed, and in which dtype."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Literal

from requant.errors import ConfigError

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "cuda"]


def resolve_device(device: str) -> Device:
    """Turn the configured device into the one that is used.

    Args:
        device: auto, cpu or cuda; auto takes a GPU where there is one.

    Raises:
        ConfigError: If cuda is asked for and torch sees no GPU, or on any other name.
    """
    if device == "cpu":
        return "cpu"
    if device not in {"auto", "cuda"}:
        raise ConfigError(f"runtime.device={device!r}: expected auto, cpu or cuda")
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ConfigError(
            f"runtime.device='cuda': torch {torch.__version__} sees no GPU; set it to auto or cpu, "
            "or install the CUDA build of torch"
        )
    return "cpu"


def compute_dtype(device: str) -> torch.dtype:
    """The dtype models compute in: bfloat16 on cuda, float32 on cpu.

    Matrix products in bfloat16 are many times slower than in float32 on a CPU without AVX512-BF16.
    """
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


def device_index(device: str) -> str | int:
    """Return a device as `device_map` names it: an index on cuda, else its name."""
    import torch

    return torch.cuda.current_device() if device == "cuda" else device


def free_memory(device: str) -> int:
    """Return the bytes that are free for models on a device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def clear_memory() -> None:
    """Give memory of models that are no longer referenced back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
