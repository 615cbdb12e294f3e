"""Load a model from an ordinary Hugging Face folder, quantized or not, and adapters beside it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.machine.library_noise import no_library_noise
from requant.models.config import check_depth, check_no_adapter, quantization_of, read_model_config
from requant.models.device import compute_dtype, device_index
from requant.models.folder import CORRECTION_NAME
from requant.models.headers import read_headers
from requant.wording import few

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(
    folder: Path, device: str, *, trainable: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load the causal language model of a folder, from its files only.

    Args:
        folder: config.json and *.safetensors; bitsandbytes and GPTQ checkpoints are recognised.
        device: cpu or cuda.
        trainable: False gives evaluation mode and no gradients; True gives training mode and
            leaves `requires_grad` as the library sets it.
        dtype: To compute in; None for `compute_dtype(device)`.

    Raises:
        ArtifactError: If config.json is missing or names a quantization requant cannot load, or if
            transformers would load anything else than the weights that are checked.
        ContractError: If the files lack tensors, which transformers would fill with random numbers.
    """
    config = read_model_config(folder)
    check_no_adapter(folder)
    check_depth(folder, config, len(read_headers(folder)))
    quantization = quantization_of(config)
    computed = dtype or compute_dtype(device)
    if quantization == "gptq":
        import_gptqmodel()
    with no_library_noise():
        from transformers import AutoModelForCausalLM, GPTQConfig

        # A 16-bit model that is only measured may be larger than the GPU: what does not fit stays
        # in main memory.
        spread = device == "cuda" and quantization is None and not trainable
        options: dict[str, Any] = {}
        if quantization == "gptq":
            # The kernel "auto" picks on a CPU latches into no-grad mode after one no-grad forward,
            # and most adapters then get no gradient while the loss still falls.
            bits = config["quantization_config"]["bits"]
            options["quantization_config"] = GPTQConfig(bits=bits, backend="gptq_torch")
        model: PreTrainedModel
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            # What is trained on a GPU is written again: its bits must not pass through another
            # 16-bit format.
            dtype="auto" if device == "cuda" and trainable else computed,
            # Of several ranks each has a GPU of its own.
            device_map="auto" if spread else {"": device_index(device)},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(report["missing_keys"]):
        raise ContractError(
            f"{folder}: its files lack {len(missing)} tensors of {type(model).__name__}, which "
            f"would be random numbers: {few(missing)}; "
            "copy the model anew, or quantize the original with requant"
        )
    if quantization in {"nf4", "int8"}:
        _set_bitsandbytes_dtype(model, computed)
    if quantization == "gptq" and device == "cpu":
        _undo_gptq_compilation(model)
    if trainable:
        return model.train()
    return model.eval().requires_grad_(False)


def load_in_memory(folder: Path, device: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model whose weights are read or changed: on the CPU where it is too large for the GPU.

    Args:
        folder: As `load_model`.
        device: cpu or cuda.
        dtype: As `load_model`.
    """
    model = load_model(folder, device, dtype=dtype)
    if set(getattr(model, "hf_device_map", {}).values()) & {"cpu", "disk"}:
        return load_model(folder, "cpu", dtype=dtype)
    return model


def corrected(model: PreTrainedModel, folder: Path) -> Any:
    """Put the LoRA beside a quantized model's weights that is part of it, where there is one."""
    beside = folder / CORRECTION_NAME
    return with_adapters(model, [(beside, 1.0)]) if beside.is_dir() else model


def with_adapters(model: PreTrainedModel, adapters: Sequence[tuple[Path, float]]) -> Any:
    """Put peft adapters beside a model's weights, for inference.

    Args:
        model: What they belong to.
        adapters: peft folder and the weight of its update; other than 1 for LoRA alone, whose
            scaling it multiplies.
    """
    import_gptqmodel()
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter_{index}" for index in range(len(adapters))]
    adapted = PeftModel.from_pretrained(model, adapters[0][0], adapter_name=names[0])
    for name, (folder, _) in zip(names[1:], adapters[1:], strict=True):
        adapted.load_adapter(folder, adapter_name=name)
    if len(names) > 1:
        adapted.base_model.set_adapter(names)
    for name, (_, weight) in zip(names, adapters, strict=True):
        for module in adapted.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    return adapted.eval()


def _set_bitsandbytes_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a bitsandbytes checkpoint compute in `dtype`: transformers keeps the stored one."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Params4bit

    # int8 products are in float16 whatever comes in; bitsandbytes says so in every forward pass.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            # Its first forward on a CPU with AVX512-BF16 would lay the weight out anew and multiply
            # in bfloat16; peft's DoRA then takes row norms of the new layout as if it were the old.
            module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        if parameter.is_floating_point() and not isinstance(parameter, (Int8Params, Params4bit)):
            parameter.data = parameter.data.to(dtype)


def _undo_gptq_compilation(model: PreTrainedModel) -> None:
    """Give GPTQ layers their uncompiled dequantization back.

    GPTQModel wraps it in torch.compile, one compilation for each shape and more than a second each
    on a CPU: longer than the evaluation it is to speed up.
    """
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)


def import_gptqmodel() -> None:
    """Import GPTQModel without its banner, logs and changes of the environment. Idempotent.

    Call it before anything that imports GPTQModel in passing: peft does for every adapter,
    transformers for every GPTQ checkpoint.
    """
    if "gptqmodel" in sys.modules:
        return
    # On two cores GPTQModel gives itself one worker and then asks for two
    # ("Virtual pool 'model_loader:cpu' requests 2 workers"); it reads nothing but the environment.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    # The import moves HF_HOME and the allocator's settings for the whole process: undone below.
    before = dict(os.environ)
    try:
        with no_library_noise(), redirect_stdout(io.StringIO()):
            from logbar import LogBar  # type: ignore[import-untyped]

            LogBar.shared().setLevel("ERROR")
            import gptqmodel  # noqa: F401
            from gptqmodel.utils import logger
    finally:
        os.environ.clear()
        os.environ.update(before)
    # What GPTQModel itself does where no terminal is attached: its progress bars know no level.
    logger._suppress_live_renderables = lambda: True
