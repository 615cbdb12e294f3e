"""A model folder measured against another one."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from requant.comparison.batches import Batch
from requant.comparison.divergence import sequence_losses, token_log_probs
from requant.data.turns import IGNORED
from requant.execution.progress import told
from requant.execution.stage import Reporter
from requant.models.device import clear_memory, compute_dtype
from requant.models.folder import CORRECTION_NAME, served_dtype
from requant.models.headers import TORCH_NAMES, headers_of, read_headers, weight_files
from requant.models.load import corrected, load_in_memory, load_model, with_adapters

if TYPE_CHECKING:
    import torch


def folder_log_probs(
    folder: Path,
    batches: Iterable[Batch],
    device: str,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    exact: bool = False,
    vocabulary: int | None = None,
    in_memory: bool = False,
    watch: Callable[[Any], None] = lambda model: None,
) -> Iterator["torch.Tensor"]:
    """Load a model, with adapters beside its weights where they are given, and run it.

    As a list the results outlive the model, so that two models are never in memory together: where
    one just fits, two do not. Keep one list at a time; with a vocabulary of 152,000 each token
    takes 0.6 MB.

    Args:
        folder: Model folder.
        batches: What it reads; `requant.execution.progress.told` says how far it is.
        device: cpu or cuda.
        adapters: See `with_adapters`.
        exact: Compute in float32 on every device, so that two models that should be equal are.
        vocabulary: Rows the embedding is brought to, where the adapters need another number; new
            ones are zero.
        in_memory: Whether `watch` reads or changes weights: a model too large for the GPU is then
            run on the CPU.
        watch: Gets the model before it runs.

    Yields:
        As `token_log_probs`.
    """
    import torch

    dtype = torch.float32 if exact else compute_dtype(device)
    # DoRA reads weights of its base past the hooks that would fetch them.
    load = load_in_memory if adapters or in_memory else load_model
    model = load(folder, device, dtype=dtype)
    if vocabulary is not None:
        _resize(model, vocabulary)
    if adapters:
        model = with_adapters(model, adapters)
    watch(model)
    model = corrected(model, folder)
    yield from token_log_probs(model, batches)
    del model
    clear_memory()


def _resize(model: Any, rows: int) -> None:
    """Bring the vocabulary to a number of rows, the new ones zero: random ones differ each time."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[before:] = 0


@dataclass(frozen=True)
class Stored:
    """Tensors that lie on disk, read one at a time, as often as they are gone through."""

    paths: tuple[Path, ...]

    def __iter__(self) -> "Iterator[torch.Tensor]":
        from safetensors.torch import load_file

        for path in self.paths:
            yield load_file(path)["tensor"]


@contextmanager
def on_disk(tensors: "Iterable[torch.Tensor]") -> Iterator[Stored]:
    """Keep tensors in a temporary folder until they are wanted, one in memory at a time."""
    from safetensors.torch import save_file

    with TemporaryDirectory() as name:
        paths = []
        for index, tensor in enumerate(tensors):
            paths.append(Path(name, f"{index}.safetensors"))
            save_file({"tensor": tensor.contiguous()}, paths[-1])
        yield Stored(tuple(paths))


def folder_loss(
    folder: Path, batches: list[Batch], device: str, reporter: Reporter | None = None
) -> float:
    """Return a model's cross entropy of the batches, nats per token."""
    heard = told(batches, reporter, f"texts of {folder.name}")
    log_probs = folder_log_probs(folder, heard, device, exact=True)
    tokens = sum(int((labels[0, 1:] != IGNORED).sum()) for _, labels in batches)
    return sum(sequence_losses(log_probs, batches)) / tokens


def size_ratio(folder: Path, original: Path) -> float:
    """Return bytes of the weights of `folder` over those of `original` as it would be served."""
    import torch

    widest: int = getattr(torch, served_dtype(original)).itemsize
    served: int = sum(
        min(header.end - header.start, widest * math.prod(header.shape))
        for header in read_headers(original).values()
        if header.dtype in TORCH_NAMES
    )
    # A correction beside the weights is served with them.
    files = [*weight_files(folder), *(folder / CORRECTION_NAME).glob("*.safetensors")]
    return sum(header.end - header.start for header in headers_of(files).values()) / served
