"""From GPTQModel's draft to a checkpoint that names everything as the original's files do."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.errors import ContractError
from requant.models.folder import INDEX_NAME, copy_companions, set_fields
from requant.models.headers import TensorHeader, headers_of, read_headers, weight_files
from requant.quantization.gptq_layout import PARTS, read_parts, stored_below
from requant.quantization.gptq_range import check_ranges, range_faults
from requant.quantization.quantizable import file_name
from requant.wording import few

MACHINE_FIELDS = frozenset(
    {
        "auto_forward_data_parallel",
        "dense_vram_strategy",
        "dense_vram_strategy_devices",
        "gc_mode",
        "moe_vram_strategy",
        "moe_vram_strategy_devices",
        "offload_to_disk",
        "offload_to_disk_path",
        "pack_impl",
        "telemetry",
        "wait_for_submodule_finalizers",
    }
)
"""Fields of GPTQModel's meta that say how the machine went about it. They hold a random temporary
folder, and the weights do not depend on them."""


def assemble(model_folder: Path, draft: Path, out: Path, prefix: str, dtype: str | None) -> None:
    """Take the quantized layers from the draft, everything else from the original, bit for bit.

    GPTQModel names tensors as the network does; files may name them otherwise (GPT-NeoX's
    embed_out is lm_head in transformers 5, Mixtral's experts are of another shape and name).

    Args:
        model_folder: The 16-bit original.
        draft: What GPTQModel wrote.
        out: Existing empty folder; gets weights in files of the original's names.
        prefix: The network's `base_model_prefix`.
        dtype: torch name of the floating dtype of what is not quantized; None keeps each tensor's.

    Raises:
        ContractError: If a quantized layer has no weight in the original's files.
        ParityError: If a layer does not fit what the format and float16 hold.
    """
    copy_companions(model_folder, out, with_index=False)
    written = json.loads((draft / "config.json").read_bytes())["quantization_config"]
    meta = {name: value for name, value in written["meta"].items() if name not in MACHINE_FIELDS}
    quantization = {**written, "meta": meta}
    # Other settings of some layers are no business of who reads them: the layout is one.
    rules = quantization.pop("dynamic", None) or {}
    if left_out := {rule: fields for rule, fields in rules.items() if rule.startswith("-:")}:
        quantization["dynamic"] = left_out
    original = json.loads((model_folder / "config.json").read_bytes())
    _write(out / "config.json", {**original, "quantization_config": quantization})
    set_fields(out, {"dtype": dtype} if dtype else {})
    # AutoGPTQ and older servers read the second file.
    _write(out / "quantize_config.json", quantization)
    packed = _packed_layers(draft, quantization)
    _write_weights(model_folder, packed, out, prefix, dtype)
    shutil.rmtree(draft)


def _packed_layers(draft: Path, quantization: Mapping[str, Any]) -> dict[str, TensorHeader]:
    """List the packed tensors of a draft, after every layer of it was checked."""
    packed = headers_of(sorted(draft.glob("*.safetensors")))
    below = stored_below(quantization)
    check_ranges(
        {
            module: range_faults(read_parts(module, packed), quantization["bits"], below)
            for module in _modules(packed)
        }
    )
    return packed


def _modules(packed: Mapping[str, TensorHeader]) -> list[str]:
    return [name.removesuffix(".qweight") for name in packed if name.endswith(".qweight")]


def _write_weights(
    model_folder: Path,
    packed: Mapping[str, TensorHeader],
    out: Path,
    prefix: str,
    dtype: str | None,
) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    stored = read_headers(model_folder)
    names = {module: file_name(module, prefix, stored) for module in _modules(packed)}
    if lost := sorted(module for module, name in names.items() if name is None):
        raise ContractError(
            f"GPTQ: {model_folder} holds no weight of {few(lost)} under these names; set "
            "requantize_gptq.enabled=false, and quantize_base.method=nf4"
        )
    of_weight = {f"{name}.weight": module for module, name in names.items()}
    places: dict[str, str] = {}
    for shard in weight_files(model_folder):
        tensors: dict[str, Any] = {}
        with safe_open(shard, framework="pt") as file:
            for name in sorted(file.keys()):
                if name not in of_weight:
                    tensor = file.get_tensor(name)
                    cast = dtype is not None and tensor.is_floating_point()
                    tensors[name] = tensor.to(getattr(torch, str(dtype))) if cast else tensor
                    continue
                parts = read_parts(of_weight[name], packed)
                tensors |= {name.removesuffix("weight") + part: parts[part] for part in PARTS}
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, shard.name)
    if len(set(places.values())) > 1:
        size = sum(
            header.end - header.start for header in headers_of(out.glob("*.safetensors")).values()
        )
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        _write(out / INDEX_NAME, index)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
