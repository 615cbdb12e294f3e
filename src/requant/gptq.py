"""GPTQ (Frantar et al. 2023, arXiv:2210.17323) through GPTQModel, written in AutoGPTQ's format."""

import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.contract import NAMED, check_model_folder, some
from requant.errors import ConfigError, ContractError, ParityError
from requant.model_folder import INDEX_NAME, copy_companions, stored_dtype
from requant.models import (
    clear_memory,
    compute_dtype,
    import_gptqmodel,
    load_tokenizer,
    quantization_of,
    quiet_libraries,
    read_model_config,
)
from requant.skeleton import read_skeleton
from requant.stage import Reporter
from requant.weights import read_headers

if TYPE_CHECKING:
    import torch

GROUP_SIZES = (32, 64, 128)
CALIBRATION_BATCH = 8
"""Sequences per calibration forward pass."""
MIN_CALIBRATION_TOKENS = 10
"""GPTQModel drops sequences up to this length."""
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
"""Of GPTQModel's meta: how the machine went about it. They hold a random temporary folder, and
the weights do not depend on them."""


def quantize_gptq(
    model_folder: Path,
    out: Path,
    texts: Sequence[str],
    *,
    bits: int,
    group_size: int,
    desc_act: bool,
    symmetric: bool,
    damp_percent: float,
    max_length: int,
    device: str,
    work: Path,
    reporter: Reporter,
) -> int:
    """Quantize the linear layers of the blocks; embeddings, norms and output layer stay as stored.

    Nothing in it is random: the same model and texts give the same bytes on one kind of machine.

    Args:
        model_folder: The 16-bit model.
        out: Existing empty folder; gets a checkpoint that transformers, vLLM and AutoGPTQ load.
        texts: Calibration documents, already through the chat template.
        bits: Per weight, 4 or 8.
        group_size: Weights along in_features that share a scale.
        desc_act: Quantize columns by decreasing activation.
        symmetric: No zero point.
        damp_percent: Added to the Hessian's diagonal, as a share of its mean.
        max_length: Tokens; longer texts are cut.
        device: cpu or cuda.
        work: Scratch on the filesystem of `out`.
        reporter: Is told of each block.

    Returns:
        The number of calibration tokens used.

    Raises:
        ConfigError: If `group_size` does not divide the in_features of a layer.
        ContractError: If the model is quantized already, incomplete, or no text is long enough.
        ParityError: If a scale comes out as NaN or infinity.
    """
    check_quantizable(model_folder, group_size)
    calibration = _encode(model_folder, texts, max_length)
    draft = work / "gptq"
    shutil.rmtree(draft, ignore_errors=True)
    _run_gptqmodel(
        model_folder,
        draft,
        calibration,
        settings={
            "bits": bits,
            "group_size": group_size,
            "desc_act": desc_act,
            "act_group_aware": not desc_act,
            "sym": symmetric,
            "damp_percent": damp_percent,
        },
        device=device,
        work=work,
        reporter=reporter,
    )
    _assemble(model_folder, draft, out)
    _check_scales(out)
    return sum(len(sequence) for sequence in calibration)


def check_quantizable(model_folder: Path, group_size: int | None) -> None:
    """Refuse what cannot be quantized, from the files' headers alone.

    Args:
        model_folder: The model.
        group_size: Of GPTQ; None for a method without groups.

    Raises:
        ConfigError: If `group_size` does not divide the in_features of a layer.
        ContractError: If the model is quantized already, or its layers are no nn.Linear.
        ArtifactError: If it is no complete model folder.
    """
    check_model_folder(model_folder)
    method = quantization_of(read_model_config(model_folder))
    if method is not None:
        raise ContractError(
            f"{model_folder}: is quantized already ({method}); give the 16-bit model it was made of"
        )
    turned = [
        name
        for name, module in read_skeleton(model_folder).model.named_modules()
        if type(module).__name__ == "Conv1D"
    ]
    if turned:
        raise ContractError(
            f"{model_folder}: {len(turned)} of its layers are Conv1D ({some(turned)}), whose "
            "weights lie the other way round than quantized ones. Train it in 16 bit: "
            "quantize_base.enabled=false, requantize_gptq.enabled=false, "
            "train_adapter.target_modules=[all-linear]"
        )
    if group_size is None:
        return
    features = _in_features(model_folder)
    unfit = {name: size for name, size in features.items() if size % group_size}
    if not unfit:
        return
    name, size = min(unfit.items())
    valid = [str(g) for g in GROUP_SIZES if all(size % g == 0 for size in features.values())]
    raise ConfigError(
        f"group_size={group_size} does not divide in_features={size} of {name}"
        + (f" (and {len(unfit) - 1} more layers)" if len(unfit) > 1 else "")
        + f"; valid for this model: {', '.join(valid) or 'none, use quantize_base.method=nf4'}"
    )


def _in_features(model_folder: Path) -> dict[str, int]:
    """Name of each linear layer inside a block to its in_features."""
    return {
        name.removesuffix(".weight"): header.shape[1]
        for name, header in read_headers(model_folder).items()
        if re.search(r"\.\d+\.", name) and name.endswith(".weight") and len(header.shape) == 2
    }


def _encode(model_folder: Path, texts: Sequence[str], max_length: int) -> list[list[int]]:
    tokenizer = load_tokenizer(model_folder)
    encoded = [
        tokenizer(text, add_special_tokens=False)["input_ids"][:max_length] for text in texts
    ]
    usable = [sequence for sequence in encoded if len(sequence) > MIN_CALIBRATION_TOKENS]
    if not usable:
        raise ContractError(
            f"calibration: none of {len(texts)} texts has more than {MIN_CALIBRATION_TOKENS} "
            "tokens; give longer conversations"
        )
    return usable


def _run_gptqmodel(
    model_folder: Path,
    draft: Path,
    calibration: Sequence[Sequence[int]],
    *,
    settings: Mapping[str, Any],
    device: str,
    work: Path,
    reporter: Reporter,
) -> None:
    import_gptqmodel()
    from gptqmodel.looper import loop_processor, module_looper

    # Otherwise a log with a random name for each run, in the folder the process was started in.
    loop_processor._PROJECT_LOG_DIR = work / "gptqmodel-logs"
    # It writes a file to time the disk, and calls a disk that others use too an ERROR.
    module_looper.io_write_performance = lambda: None
    with quiet_libraries():
        from gptqmodel import GPTQModel, QuantizeConfig

        config = QuantizeConfig(
            **settings,
            device=device,
            # The default compiles a C++ extension first, which takes 50 s; torch needs 4 s for the
            # largest layer of a 14B model.
            pack_impl="original",
            # A GPU gets the model block by block; on a CPU all of it is in memory anyway.
            offload_to_disk=device == "cuda",
            offload_to_disk_path=str(work / "offload") if device == "cuda" else None,
        )
        dtype = _loading_dtype(model_folder, device)
        model = GPTQModel.load(str(model_folder), config, dtype=dtype)
        blocks = read_model_config(model_folder).get("num_hidden_layers", 0)

        def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
            if submodule_finalized:
                reporter.progress(layer_idx + 1, blocks, "blocks")

        model.layer_callback = layer_complete
        model.quantize(
            [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in calibration],
            batch_size=CALIBRATION_BATCH,
            calibration_data_min_length=MIN_CALIBRATION_TOKENS,
        )
        # It prints both configurations.
        with redirect_stdout(io.StringIO()):
            model.save(str(draft))
        del model
    clear_memory()


def _assemble(model_folder: Path, draft: Path, out: Path) -> None:
    """Take weights and quantization from the draft, everything else from the original."""
    copy_companions(model_folder, out, with_index=False)
    written = json.loads((draft / "config.json").read_bytes())["quantization_config"]
    meta = {name: value for name, value in written["meta"].items() if name not in MACHINE_FIELDS}
    quantization = {**written, "meta": meta}
    original = json.loads((model_folder / "config.json").read_bytes())
    _write(out / "config.json", {**original, "quantization_config": quantization})
    # AutoGPTQ and older servers read the second file.
    _write(out / "quantize_config.json", quantization)
    dtypes = {name: header.dtype for name, header in read_headers(model_folder).items()}
    for shard in sorted(draft.glob("*.safetensors")):
        _copy_shard(shard, out / shard.name, dtypes)
    if (draft / INDEX_NAME).exists():
        shutil.copyfile(draft / INDEX_NAME, out / INDEX_NAME)
    shutil.rmtree(draft)


def _copy_shard(source: Path, target: Path, dtypes: Mapping[str, str]) -> None:
    """Copy a weights file, giving unquantized tensors, which are float32 on a CPU, their dtype."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    cast = {
        name: tensor.to(names[dtypes[name]]) if name in dtypes else tensor
        for name, tensor in tensors.items()
    }
    save_file(cast, target, metadata={"format": "pt"})


def _loading_dtype(folder: Path, device: str) -> "torch.dtype":
    """Keep a float16 model's bits on a GPU: embeddings and norms are written again as loaded."""
    return stored_dtype(folder) if device == "cuda" else compute_dtype(device)


def _check_scales(folder: Path) -> None:
    from safetensors import safe_open

    broken = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            scales = [name for name in file.keys() if name.endswith(".scales")]  # noqa: SIM118
            broken += [name for name in scales if not file.get_tensor(name).isfinite().all()]
    if broken:
        raise ParityError(
            f"GPTQ: {len(broken)} layers have NaN or infinite scales, first "
            f"{', '.join(broken[:NAMED])}; likely a broken weight or too little calibration text: "
            "raise calibration_rows or damp_percent"
        )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
