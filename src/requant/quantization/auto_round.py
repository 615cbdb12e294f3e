"""AutoRound (Cheng et al. 2024, arXiv:2309.05516), by Intel's package, in AutoGPTQ's format.

Which way each weight is rounded, and where each group's range ends, is learned block by block by
signed gradient descent on the block's output, where GPTQ solves for it layer by layer.
"""

import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path

from requant.errors import ConfigError
from requant.execution.stage import Reporter
from requant.models.config import read_model_config
from requant.models.device import clear_memory, compute_dtype
from requant.models.load import import_gptqmodel
from requant.models.skeleton import empty_model, read_causal_config
from requant.models.tokenizer import load_tokenizer
from requant.quantization.gptq_files import assemble
from requant.quantization.quantizable import auto_round_problem, check_quantizable
from requant.quantization.settings import GptqSettings

SEQUENCE = 256
"""Tokens of a sequence; texts are joined, as AutoRound takes sequences of one length alone."""
BATCH = 8


def quantize_auto_round(
    model_folder: Path,
    out: Path,
    calibration: Sequence[Sequence[int]],
    settings: GptqSettings,
    iterations: int,
    *,
    seed: int,
    device: str,
    work: Path,
    reporter: Reporter,
    dtype: str | None = None,
) -> None:
    """Quantize the linear layers of the blocks; everything else stays as it is.

    Args:
        model_folder: The 16-bit model.
        out: Existing empty folder; gets a checkpoint as `requant.quantization.gptq` writes it.
        calibration: Token ids of documents, [texts][tokens].
        settings: Bits, group size and symmetry; the others are GPTQ's.
        iterations: Steps of descent for each block.
        seed: Of the order in which sequences are taken.
        device: cpu or cuda.
        work: Scratch on the filesystem of `out`.
        reporter: Is told of each block.
        dtype: torch name of the floating dtype of what is not quantized; None keeps each tensor's.

    Raises:
        ConfigError: If the group size does not divide the in_features of a layer, or the model has
            experts in one tensor.
        ContractError: If the model is quantized already, or incomplete.
        ParityError: If a scale or zero point does not fit the format.
    """
    layers = check_quantizable(model_folder, settings.group_size)
    if problem := auto_round_problem(layers):
        raise ConfigError(f"requantize_gptq.method: {problem}")
    draft = work / "auto-round"
    shutil.rmtree(draft, ignore_errors=True)
    blocks = int(read_model_config(model_folder).get("num_hidden_layers", 0))
    with _told(reporter, blocks):
        _run(model_folder, draft, calibration, settings, iterations, seed, device)
    (written,) = draft.iterdir()
    # It says neither how zero points are stored nor by whom.
    fields = json.loads((written / "config.json").read_bytes())
    fields["quantization_config"] = {
        "bits": settings.bits,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "group_size": settings.group_size,
        "lm_head": False,
        "meta": {
            "iterations": iterations,
            "quantizer": [f"auto-round:{version('auto-round')}"],
            "uri": "https://github.com/intel/auto-round",
        },
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": settings.symmetric,
    }
    (written / "config.json").write_text(json.dumps(fields))
    network = empty_model(read_causal_config(model_folder))
    assemble(model_folder, written, out, network.base_model_prefix, dtype)
    shutil.rmtree(draft)


def _run(
    model_folder: Path,
    draft: Path,
    calibration: Sequence[Sequence[int]],
    settings: GptqSettings,
    iterations: int,
    seed: int,
    device: str,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    # transformers asks which GPTQ library there is as soon as the export is configured.
    import_gptqmodel()
    from auto_round import AutoRound

    tokens = [token for ids in calibration for token in ids]
    length = min(SEQUENCE, len(tokens))
    sequences = [
        {"input_ids": torch.tensor([tokens[start : start + length]])}
        for start in range(0, len(tokens) - length + 1, length)
    ]
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=compute_dtype(device), local_files_only=True, trust_remote_code=False
    )
    rounding = AutoRound(
        model,
        load_tokenizer(model_folder),
        bits=settings.bits,
        group_size=settings.group_size,
        sym=settings.symmetric,
        scheme="W4A16",
        iters=iterations,
        seqlen=length,
        nsamples=len(sequences),
        batch_size=min(BATCH, len(sequences)),
        dataset=sequences,
        device_map=device,
        amp=device == "cuda",
        enable_torch_compile=False,
        seed=seed,
    )
    rounding.quantize_and_save(str(draft), format="auto_gptq")
    del model, rounding
    clear_memory()


class _Blocks(logging.Handler):
    """Counts the blocks that AutoRound's log says are done."""

    def __init__(self, reporter: Reporter, blocks: int) -> None:
        super().__init__()
        self._reporter, self._blocks, self._done = reporter, blocks, 0

    def emit(self, record: logging.LogRecord) -> None:
        if "layers in the block" in record.getMessage():
            self._done += 1
            self._reporter.progress(self._done, max(self._blocks, self._done), "blocks")


@contextmanager
def _told(reporter: Reporter, blocks: int) -> Iterator[None]:
    """Hear AutoRound's log instead of printing it and its progress bars."""
    from auto_round.logger import logger

    before = logger.handlers[:], logger.level
    logger.handlers[:] = [_Blocks(reporter, blocks)]
    logger.setLevel(logging.INFO)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.handlers[:] = before[0]
        logger.setLevel(before[1])
