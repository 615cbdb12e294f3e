"""GPTQ (Frantar et al. 2023, arXiv:2210.17323) through GPTQModel, written in AutoGPTQ's format."""

import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.execution.stage import Reporter
from requant.machine.library_noise import no_library_noise
from requant.models.config import read_model_config
from requant.models.device import clear_memory, compute_dtype
from requant.models.folder import stored_dtype
from requant.models.load import import_gptqmodel
from requant.models.skeleton import empty_model, read_causal_config
from requant.models.tokenizer import load_tokenizer
from requant.outside.tokenizer_patterns import naming_patterns
from requant.quantization.gptq_files import assemble
from requant.quantization.gptq_grids import mended_grids
from requant.quantization.gptq_workers import errors_of_workers
from requant.quantization.quantizable import check_quantizable, fused_experts

if TYPE_CHECKING:
    import torch

CALIBRATION_BATCH = 8
"""Sequences per calibration forward pass."""
MIN_CALIBRATION_TOKENS = 10
"""GPTQModel drops sequences up to this length."""


@dataclass(frozen=True)
class CalibrationUse:
    """What of the calibration texts was used."""

    tokens: int
    cut: int
    """Texts longer than the limit."""
    lost_tokens: int
    """Tokens of the cut texts beyond the limit."""
    too_short: int
    """Texts that GPTQModel does not take."""

    def __str__(self) -> str:
        return (
            f"calibration: {self.tokens} tokens; {self.cut} texts cut, {self.lost_tokens} tokens "
            f"lost, {self.too_short} texts of at most {MIN_CALIBRATION_TOKENS} tokens left out"
        )


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
    dtype: str | None = None,
) -> CalibrationUse:
    """Quantize the linear layers of the blocks; everything else stays as it is.

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
        dtype: torch name of the floating dtype that what is not quantized is written in; None
            keeps each tensor's own.

    Returns:
        What of the calibration texts was used; it is said, too.

    Raises:
        ConfigError: If `group_size` does not divide the in_features of a layer.
        ContractError: If the model is quantized already, incomplete, or no text is long enough.
        ParityError: If a scale comes out as NaN or infinity.
    """
    check_quantizable(model_folder, group_size)
    calibration, used = encode_calibration(load_tokenizer(model_folder), texts, max_length)
    reporter.message(str(used))
    network = empty_model(read_causal_config(model_folder))
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
            "act_group_aware": not desc_act and group_size > 0,
            "sym": symmetric,
            "damp_percent": damp_percent,
            # transformers holds all experts of a block in one tensor, and fills it with random
            # numbers where the files hold packed ones.
            "dynamic": {f"-:{re.escape(name)}\\..*": {} for name in fused_experts(network)} or None,
        },
        device=device,
        work=work,
        reporter=reporter,
    )
    assemble(model_folder, draft, out, network.base_model_prefix, dtype)
    return used


def encode_calibration(
    tokenizer: Any, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], CalibrationUse]:
    """Encode calibration texts, cut them, leave out what GPTQModel would, and count both.

    Raises:
        ContractError: If no text is long enough.
    """
    with naming_patterns(tokenizer, "calibration"):
        encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    usable = [ids[:max_length] for ids in encoded if len(ids) > MIN_CALIBRATION_TOKENS]
    if not usable:
        raise ContractError(
            f"calibration: none of {len(texts)} texts has more than {MIN_CALIBRATION_TOKENS} "
            "tokens; give longer conversations"
        )
    over = [len(ids) - max_length for ids in encoded if len(ids) > max_length]
    return usable, CalibrationUse(
        tokens=sum(map(len, usable)),
        cut=len(over),
        lost_tokens=sum(over),
        too_short=len(encoded) - len(usable),
    )


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
    with no_library_noise(), errors_of_workers(), mended_grids():
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
        fields = read_model_config(model_folder)
        with _unpatched_afterwards(str(fields["model_type"])):
            model = GPTQModel.load(str(model_folder), config, dtype=dtype)
        blocks = fields.get("num_hidden_layers", 0)

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


@contextmanager
def _unpatched_afterwards(model_type: str) -> Iterator[None]:
    """Give transformers its classes back, of which GPTQModel replaces those with fused experts.

    Every later load in this process would build the replaced ones, whose experts are layers, and
    leave random numbers in them.
    """
    from defuser.model_registry import (  # type: ignore[import-untyped]
        MODEL_CONFIG,
        PATCH,
    )
    from transformers import conversion_mapping, modeling_utils

    places: list[tuple[Any, str]] = [
        (conversion_mapping, "get_checkpoint_conversion_mapping"),
        (modeling_utils, "get_checkpoint_conversion_mapping"),
    ]
    for path, _ in MODEL_CONFIG.get(model_type, {}).get(PATCH.REPLACE_MODULE, ()):
        module, _, name = path.rpartition(".")
        places.append((import_module(module), name))
    before = [(owner, name, vars(owner).get(name)) for owner, name in places]
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is None:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, value)


def _loading_dtype(folder: Path, device: str) -> "torch.dtype":
    """Keep a float16 model's bits on a GPU: embeddings and norms are written again as loaded."""
    return stored_dtype(folder) if device == "cuda" else compute_dtype(device)
