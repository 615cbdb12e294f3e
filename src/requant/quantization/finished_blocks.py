"""Blocks that an earlier attempt quantized: after a kill only the forward passes are made again.

GPTQModel's own checkpoints know two architectures, take no GPTAQ, and replace the handlers of
signals that Prefect stops a run by. What is kept here is what `GPTQ.quantize` returns, so that
whatever comes after it (packing, inputs of the next block) goes its usual way.
"""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json, digest_of
from requant.execution.stage import Reporter
from requant.outside.json_text import DOCUMENT, parse_json
from requant.store.durable import write_durably
from requant.store.manifest import hash_file

Found = tuple[Any, ...]
"""Weights, scales, zero points, group of each column, seconds, loss, damping, tokens: as
`GPTQ.quantize` returns them."""

TENSORS = ("weight", "scale", "zero", "group")


@contextmanager
def finished_blocks(
    folder: Path, identity: object, reporter: Reporter
) -> Iterator[Callable[[int], None]]:
    """Quantize no layer of a block that `folder` holds, and keep those that are quantized now.

    Args:
        folder: Scratch that outlives a kill; is emptied if it is of another identity.
        identity: Of everything that decides the result: model, texts, settings, libraries. JSON.
        reporter: Is told how many blocks are taken from an earlier attempt.

    Yields:
        What is to be called with the number of each block once all of its layers are quantized.
    """
    from gptqmodel.quantization import GPTAQ, GPTQ

    kept = folder / digest_of(identity)[:16]
    for other in set(folder.glob("*")) - {kept}:
        shutil.rmtree(other)
    known = _read_blocks(kept, reporter)
    if known:
        blocks = len({key.partition(" ")[0] for key in known})
        reporter.message(f"blocks kept of the attempt that was ended: {blocks}")
    fresh: dict[int, dict[str, Found]] = {}
    lock = threading.Lock()
    classes: Sequence[Any] = (GPTQ, GPTAQ)
    replaced = ("quantize", "add_batch", "adopt_hessian_from")
    before = [
        (owner, name, vars(owner)[name])
        for owner in classes
        for name in replaced
        if name in vars(owner)
    ]

    def quantizing(inherited: Any) -> Any:
        def quantize(self: Any, *arguments: Any, **options: Any) -> Found:
            key = _key(self)
            if key in known:
                return _read_layer(*known[key], key, self.module.weight.device)
            found: Found = inherited(self, *arguments, **options)
            with lock:
                fresh.setdefault(self._named_module.layer_index, {})[key] = found
            return found

        return quantize

    def unless_known(inherited: Any) -> Any:
        def gather(self: Any, *arguments: Any, **options: Any) -> None:
            if _key(self) not in known:
                inherited(self, *arguments, **options)
                return
            with self.lock:
                # GPTQModel takes a layer that was never called for an expert that no token reached.
                self.fwd_counter += 1

        return gather

    def keep(block: int) -> None:
        with lock:
            layers = fresh.pop(block, {})
        if layers:
            _write_block(kept, block, layers)

    for owner, name, method in before:
        setattr(owner, name, (quantizing if name == "quantize" else unless_known)(method))
    try:
        yield keep
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def _key(task: Any) -> str:
    return f"{task._named_module.layer_index} {task._named_module.full_name}"


def _read_layer(path: Path, figures: Sequence[Any], key: str, device: Any) -> Found:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        tensors = [stored.get_tensor(f"{key} {name}").to(device) for name in TENSORS]
    return (*tensors, *figures)


def _write_block(folder: Path, block: int, layers: Mapping[str, Found]) -> None:
    """Write what was found in one file, whose name holds its digest."""
    from safetensors.torch import save

    tensors = {}
    figures = {}
    for key, found in layers.items():
        for name, tensor in zip(TENSORS, found, strict=False):
            # GPTQModel goes on with the tensor itself, which another layer may share.
            tensors[f"{key} {name}"] = tensor.detach().cpu().contiguous().clone()
        figures[key] = found[len(TENSORS) :]
    content = save(tensors, metadata={"figures": canonical_json(figures).decode()})
    digest = hashlib.sha256(content).hexdigest()
    write_durably(folder / f"{block}-{digest}.safetensors", content)


def _read_blocks(folder: Path, reporter: Reporter) -> dict[str, tuple[Path, Sequence[Any]]]:
    """Find the layers of all whole blocks; a file that lost bytes is said and removed.

    Returns:
        Layer -> its file and figures; all tensors at once would be a second model in memory.
    """
    from safetensors import safe_open

    known: dict[str, tuple[Path, Sequence[Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if hash_file(path) != path.stem.partition("-")[2]:
            reporter.message(f"{path.name} is damaged: its block is quantized again")
            path.unlink()
            continue
        with safe_open(path, framework="pt") as stored:
            for key, figures in parse_json(stored.metadata()["figures"], DOCUMENT).items():
                known[key] = path, figures
    return known
