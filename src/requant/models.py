"""Load a model or a tokenizer from an ordinary Hugging Face folder, quantized or not."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from requant.errors import ArtifactError, ConfigError, ContractError
from requant.json_file import read_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's config.json.

    Raises:
        ArtifactError: If it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ArtifactError(f"{path}: is missing; {folder} is not a model folder")
    return read_object(path)


def quantization_of(config: dict[str, Any]) -> str | None:
    """Name the quantization of a model from its config.json: nf4, int8, gptq, or None.

    Raises:
        ArtifactError: On a method requant cannot load.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    method = quantization.get("quant_method")
    if method == "gptq":
        return "gptq"
    if method == "bitsandbytes":
        return "nf4" if quantization.get("load_in_4bit") else "int8"
    raise ArtifactError(
        f"config.json: quantization_config.quant_method={method!r}; expected bitsandbytes or gptq"
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, from its files only."""
    with quiet_libraries():
        from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    # Lengths are limited, and what is cut is counted, after encoding: its warning of "indexing
    # errors" is given once a tokenizer, and this one has been given.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _device_index(device: str) -> str | int:
    import torch

    return torch.cuda.current_device() if device == "cuda" else device


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
        ArtifactError: If config.json is missing or names a quantization requant cannot load.
        ContractError: If the files lack tensors, which transformers would fill with random numbers.
    """
    config = read_model_config(folder)
    quantization = quantization_of(config)
    computed = dtype or compute_dtype(device)
    if quantization == "gptq":
        import_gptqmodel()
    with quiet_libraries():
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
            device_map="auto" if spread else {"": _device_index(device)},
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(report["missing_keys"]):
        raise ContractError(
            f"{folder}: its files lack {len(missing)} tensors of {type(model).__name__}, which "
            f"would be random numbers: {', '.join(missing[:5])}{' ...' if missing[5:] else ''}; "
            "copy the model anew, or quantize the original with requant"
        )
    if quantization in {"nf4", "int8"}:
        _set_bitsandbytes_dtype(model, computed)
    if quantization == "gptq" and device == "cpu":
        _undo_gptq_compilation(model)
    if trainable:
        return model.train()
    return model.eval().requires_grad_(False)


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
        with quiet_libraries(), redirect_stdout(io.StringIO()):
            from logbar import LogBar  # type: ignore[import-untyped]

            LogBar.shared().setLevel("ERROR")
            import gptqmodel  # noqa: F401
            from gptqmodel.utils import logger
    finally:
        os.environ.clear()
        os.environ.update(before)
    # What GPTQModel itself does where no terminal is attached: its progress bars know no level.
    logger._suppress_live_renderables = lambda: True


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, log lines or warnings of transformers and torch within the block."""
    threshold = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            from transformers.utils.logging import (
                disable_progress_bar,
                enable_progress_bar,
                is_progress_bar_enabled,
            )

            bars = is_progress_bar_enabled()
            disable_progress_bar()
            try:
                yield
            finally:
                if bars:
                    enable_progress_bar()
    finally:
        logging.disable(threshold)


def clear_memory() -> None:
    """Give memory of models that are no longer referenced back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
