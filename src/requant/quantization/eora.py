"""EoRA: what rounding took from each layer, given back by a LoRA that ships beside the model.

Liu et al. 2024 (arXiv:2410.21271). With the inputs X of a layer, its eigenvectors X X^T = Q L Q^T
and the error D = W - W_q, the best A, B of rank r for ||(D - B A) X|| are the first r singular
vectors of D Q L^(1/2), taken back by L^(-1/2) Q^T.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.canonical import canonical_json
from requant.execution.progress import told
from requant.execution.stage import Reporter
from requant.models.device import clear_memory, compute_dtype
from requant.models.folder import CORRECTION_NAME, served_dtype
from requant.models.headers import headers_of, read_headers
from requant.models.load import import_gptqmodel, load_in_memory
from requant.quantization.dequantize import load_tensor, read_quantized
from requant.quantization.kernel_check import quantized_layers

if TYPE_CHECKING:
    import torch

GRAM_BYTES = 4 << 30
"""Memory for the X X^T of the layers that one pass over the texts gathers."""


def write_correction(
    original: Path,
    quantized: Path,
    texts: Sequence[Sequence[int]],
    rank: int,
    *,
    device: str,
    reporter: Reporter,
) -> None:
    """Write a LoRA of every quantized layer's error into `quantized/eora`, as peft reads it.

    Args:
        original: The 16-bit model.
        quantized: What GPTQ made of it.
        texts: Token ids of the calibration, [texts][tokens].
        rank: r, of every layer; at most its smaller side.
        device: cpu or cuda.
        reporter: Hears how far it is.
    """
    import torch
    from safetensors.torch import save_file

    import_gptqmodel()
    from gptqmodel.eora.eora import eora_compute_lora

    packed = read_quantized(quantized)
    headers = read_headers(original)
    model = load_in_memory(original, device, compute_dtype(device))
    layers = quantized_layers(model, packed)
    for name, module in layers.items():
        weight = model.get_submodule(name).weight
        weight.data.copy_(packed.weight(f"{module}.weight"))
    tensors: dict[str, torch.Tensor] = {}
    dtype = getattr(torch, served_dtype(original))
    for names in _passes(model, layers):
        with _gathered(model, names) as grams, torch.no_grad():
            for ids in told(texts, reporter, "texts for EoRA"):
                model(torch.tensor([list(ids)], device=model.device))
        for name in names:
            layer = model.get_submodule(name)
            error = load_tensor(f"{layers[name]}.weight", headers).float() - layer.weight.cpu()
            # An expert that no text reached: of its inputs nothing is known, and nothing is added.
            down = up = error.new_zeros(0, 0)
            if name in grams:
                down, up = eora_compute_lora(
                    w_wq_delta=error.to(model.device),
                    name=name,
                    eigen_scaling_diag_matrix=grams.pop(name),
                    rank=min(rank, *error.shape),
                    dtype=torch.float32,
                    device=model.device,
                )
            stem = f"base_model.model.{name}"
            # Where a layer is smaller than the rank, zeros keep one rank for all.
            for part, factor, shape in (
                ("lora_A", down, (rank, error.shape[1])),
                ("lora_B", up, (error.shape[0], rank)),
            ):
                filled = torch.zeros(shape, dtype=dtype)
                filled[: factor.shape[0], : factor.shape[1]] = factor.to("cpu", dtype)
                tensors[f"{stem}.{part}.weight"] = filled
    folder = quantized / CORRECTION_NAME
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_bytes(canonical_json(_peft_config(layers, rank)))
    del model
    clear_memory()


def correction_bits(quantized: Path) -> int:
    """Return the bits of the tensors in a model's correction; 0 without one."""
    folder = quantized / CORRECTION_NAME
    if not folder.is_dir():
        return 0
    headers = headers_of([folder / "adapter_model.safetensors"]).values()
    return 8 * sum(header.end - header.start for header in headers)


def _passes(model: Any, layers: Mapping[str, str]) -> Iterator[list[str]]:
    """Divide layers so that the Gram matrices of each part fit into `GRAM_BYTES`."""
    part: list[str] = []
    size = 0
    for name in sorted(layers):
        needed = 4 * int(model.get_submodule(name).in_features) ** 2
        if part and size + needed > GRAM_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += needed
    if part:
        yield part


@contextmanager
def _gathered(model: Any, names: Sequence[str]) -> "Iterator[dict[str, torch.Tensor]]":
    """Sum X X^T of layers over what the model reads; float32 [in, in] each."""
    grams: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: "torch.Tensor") -> None:
        rows = inputs.flatten(0, -2).float()
        gram = rows.T @ rows
        grams[name] = grams[name].add_(gram) if name in grams else gram

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: add(name, inputs[0])
        )
        for name in names
    ]
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()


def _peft_config(layers: Mapping[str, str], rank: int) -> dict[str, Any]:
    """Say it as peft does, whose own writer lists the layers in another order each time."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(layers),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    return {**config.to_dict(), "target_modules": sorted(layers)}
