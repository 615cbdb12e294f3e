"""Exports loaded by transformers and computed with, and their weights read from the files."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.comparison.batches import Batch
from requant.comparison.divergence import token_log_probs
from requant.errors import ParityError
from requant.exporting.codes import modules_of, read_codes, read_gptq
from requant.exporting.gguf_architectures import rope_rows
from requant.exporting.gguf_file import GGUF_NAME
from requant.machine.library_noise import no_library_noise
from requant.models.config import read_model_config
from requant.models.device import clear_memory, device_index
from requant.models.headers import read_headers
from requant.models.skeleton import read_causal_config
from requant.quantization.dequantize import load_tensor
from requant.wording import few

if TYPE_CHECKING:
    import torch

Weight = Callable[[str], "torch.Tensor"]
"""Module of the model's files -> float32 [out, in]."""


def export_log_probs(
    export: Path, kind: str, batches: Iterable[Batch], device: str
) -> Iterator["torch.Tensor"]:
    """Load an export as transformers does, and run it in float32; see `token_log_probs`.

    Args:
        export: Folder.
        kind: gguf or compressed-tensors.
        batches: What it reads.
        device: cpu or cuda.
    """
    # Bars for what takes a second.
    with no_library_noise(), redirect_stderr(io.StringIO()):
        model = _gguf_model(export, device) if kind == "gguf" else _packed_model(export, device)
    yield from token_log_probs(model.eval(), batches)
    del model
    clear_memory()


def _gguf_model(export: Path, device: str) -> Any:
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(export, gguf_file=GGUF_NAME, local_files_only=True)
    # transformers 5.23 does not read it for Qwen3, and takes 128.
    length = GGUFReader(export / GGUF_NAME).get_field(f"{config.model_type}.attention.key_length")
    if length is not None:
        config.head_dim = int(length.contents())
    return AutoModelForCausalLM.from_pretrained(
        export,
        gguf_file=GGUF_NAME,
        config=config,
        dtype=torch.float32,
        device_map={"": device_index(device)},
        local_files_only=True,
        trust_remote_code=False,
    )


def _packed_model(export: Path, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    return AutoModelForCausalLM.from_pretrained(
        export,
        # Otherwise the network that is to be filled has zero points of another shape than
        # compressed-tensors 0.20 packs them to.
        quantization_config=CompressedTensorsConfig(dequantize=True),
        dtype=torch.float32,
        device_map={"": device_index(device)},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


def gguf_weights(model: Path, export: Path) -> Weight:
    """Read layers of a GGUF file by the dequantization of the package `gguf`."""
    import torch
    from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map

    config = read_causal_config(model)
    reader = GGUFReader(export / GGUF_NAME)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    arch = MODEL_ARCH[config.model_type.upper()]
    names = get_tensor_name_map(arch, config.num_hidden_layers)

    def weight(module: str) -> "torch.Tensor":
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        tensor = tensors[str(name)]
        rows = torch.arange(tensor.data.shape[0])
        order = rope_rows(rows.unsqueeze(1), f"{module}.weight", config).squeeze(1)
        found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        return found[order.argsort()]

    return weight


def packed_weights(model: Path, export: Path) -> Weight:
    """Read layers of a compressed-tensors folder by the decompression of its package."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    headers = read_headers(export)
    settings = dict(read_model_config(export)["quantization_config"])
    settings.pop("version")
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(settings["format"])

    def weight(module: str) -> "torch.Tensor":
        prefix = f"{module}."
        tensors = {
            name.removeprefix(prefix): load_tensor(name, headers)
            for name in headers
            if name.startswith(f"{prefix}weight")
        }
        # In float16, the scales' own dtype, the product would be rounded.
        tensors["weight_scale"] = tensors["weight_scale"].float()
        found: torch.Tensor = compressor.decompress(tensors, scheme)["weight"]
        return found

    return weight


READERS: dict[str, Callable[[Path, Path], Weight]] = {
    "gguf": gguf_weights,
    "compressed-tensors": packed_weights,
}


def check_exact(model: Path, export: Path, kind: str) -> int:
    """Compare every quantized layer of an export with the GPTQ model, bit for bit in float32.

    Args:
        model: GPTQ folder.
        export: Folder.
        kind: gguf or compressed-tensors.

    Returns:
        How many layers were compared.

    Raises:
        ParityError: If a weight differs.
    """
    quantized, weight = read_gptq(model), READERS[kind](model, export)
    modules = modules_of(quantized)
    wrong = [
        module
        for module in modules
        if not bool((weight(module) == read_codes(quantized, module).weight).all())
    ]
    if wrong:
        raise ParityError(
            f"{kind}: {len(wrong)} of {len(modules)} layers are read back with other weights than "
            f"the GPTQ model has ({few(wrong)}); report it, and serve the GPTQ folder itself"
        )
    return len(modules)
