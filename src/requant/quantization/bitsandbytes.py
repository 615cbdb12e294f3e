"""NF4 and int8 through bitsandbytes: a model quantized while it is loaded."""

from pathlib import Path
from typing import Any

from requant.machine.library_noise import no_library_noise
from requant.models.device import clear_memory
from requant.models.folder import copy_companions, stored_dtype


def quantize_bitsandbytes(base: Path, out: Path, method: str, device: str) -> None:
    """Quantize while loading.

    nf4 is NormalFloat4 with quantized scales (Dettmers et al. 2023, arXiv:2305.14314), int8 is
    LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339). The output layer stays in 16 bit.

    Args:
        base: 16-bit model folder.
        out: Empty folder for the quantized one.
        method: nf4 or int8.
        device: cpu or cuda.
    """
    with no_library_noise():
        model = load_quantized(base, method, device)
        model.save_pretrained(out)
    written = (out / "config.json").read_bytes()
    copy_companions(base, out, with_index=False)
    (out / "config.json").write_bytes(written)
    del model
    clear_memory()


def load_quantized(base: Path, method: str, device: str) -> Any:
    """Load a 16-bit model, quantized on the way; see `quantize_bitsandbytes`."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if method == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            # Written into the artifact, so the same on every machine; `load_model` computes in
            # float32 on a CPU.
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=config,
        dtype=stored_dtype(base),
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=False,
    )
