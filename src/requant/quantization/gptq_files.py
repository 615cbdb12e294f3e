"""From GPTQModel's draft to a checkpoint that names everything as the original's files do."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.errors import ContractError, ParityError
from requant.models.folder import INDEX_NAME, copy_companions, set_fields
from requant.models.headers import headers_of, read_headers, weight_files
from requant.quantization.quantizable import file_name
from requant.wording import few

PACKED = ("g_idx", "qweight", "qzeros", "scales")
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
        ParityError: If a scale came out as NaN or infinity.
    """
    copy_companions(model_folder, out, with_index=False)
    written = json.loads((draft / "config.json").read_bytes())["quantization_config"]
    meta = {name: value for name, value in written["meta"].items() if name not in MACHINE_FIELDS}
    quantization = {**written, "meta": meta}
    original = json.loads((model_folder / "config.json").read_bytes())
    _write(out / "config.json", {**original, "quantization_config": quantization})
    set_fields(out, {"dtype": dtype} if dtype else {})
    # AutoGPTQ and older servers read the second file.
    _write(out / "quantize_config.json", quantization)
    _write_weights(model_folder, draft, out, prefix, dtype)


def _write_weights(
    model_folder: Path, draft: Path, out: Path, prefix: str, dtype: str | None
) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    packed = headers_of(sorted(draft.glob("*.safetensors")))
    stored = read_headers(model_folder)
    modules = [name.removesuffix(".qweight") for name in packed if name.endswith(".qweight")]
    names = {module: file_name(module, prefix, stored) for module in modules}
    if lost := sorted(module for module, name in names.items() if name is None):
        raise ContractError(
            f"GPTQ: {model_folder} holds no weight of {few(lost)} under these names; set "
            "requantize_gptq.enabled=false, and quantize_base.method=nf4"
        )
    of_weight = {f"{name}.weight": module for module, name in names.items()}
    broken: list[str] = []
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
                module = of_weight[name]
                for leaf in PACKED:
                    with safe_open(packed[f"{module}.{leaf}"].file, framework="pt") as made:
                        tensor = made.get_tensor(f"{module}.{leaf}")
                    tensors[f"{name.removesuffix('weight')}{leaf}"] = tensor
                    if leaf == "scales" and not tensor.isfinite().all():
                        broken.append(module)
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, shard.name)
    if broken:
        raise ParityError(
            f"GPTQ: {len(broken)} layers have NaN or infinite scales: "
            f"{few(broken)}; likely a broken weight or too little calibration text: "
            "raise calibration_rows or damp_percent"
        )
    if len(set(places.values())) > 1:
        size = sum(
            header.end - header.start for header in headers_of(out.glob("*.safetensors")).values()
        )
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        _write(out / INDEX_NAME, index)
    shutil.rmtree(draft)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
