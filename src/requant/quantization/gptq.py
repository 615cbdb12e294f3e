"""GPTQ (Frantar et al. 2023, arXiv:2210.17323) through GPTQModel, written in AutoGPTQ's format."""

import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.canonical import digest_of
from requant.execution.stage import Reporter
from requant.machine.library_noise import no_library_noise
from requant.models.config import read_model_config
from requant.models.device import clear_memory, compute_dtype
from requant.models.folder import stored_dtype
from requant.models.load import import_gptqmodel
from requant.models.provenance import weights_digest
from requant.models.skeleton import empty_model, read_causal_config
from requant.quantization.calibration import MIN_TOKENS
from requant.quantization.damping import said_damping
from requant.quantization.finished_blocks import finished_blocks
from requant.quantization.gptq_files import assemble
from requant.quantization.gptq_grids import mended_grids
from requant.quantization.gptq_workers import errors_of_workers
from requant.quantization.quantizable import check_quantizable, fused_experts
from requant.quantization.settings import GptqSettings, gptqmodel_settings

if TYPE_CHECKING:
    import torch

CALIBRATION_BATCH = 8
"""Sequences per calibration forward pass."""
BLOCKS_VERSION = 1
"""Raised with every change of our own code that changes what is found for a layer: blocks that
another version left are not gone on with."""
GPTAQ_BATCH = 1
"""GPTQModel takes the padding out of a layer's inputs, and leaves it in what GPTAQ holds them
against."""


@dataclass(frozen=True)
class Rounding:
    """How the layers were rounded, where that was not as asked."""

    damped: Mapping[str, float]
    """Layers whose Hessian was positive definite with more damping only, and how much."""
    to_nearest: tuple[str, ...]
    """Layers that too few tokens reached (experts), or whose Hessian no damping mended."""

    def lines(self) -> list[str]:
        """Say what a person should know of it, one line a kind."""
        found = []
        if self.damped:
            each = ", ".join(f"{name} ({damp:g})" for name, damp in self.damped.items())
            found.append(f"{len(self.damped)} layers took more damping than damp_percent: {each}")
        if self.to_nearest:
            found.append(
                f"{len(self.to_nearest)} layers are rounded to the nearest, as too few calibration "
                f"tokens reached them: {', '.join(self.to_nearest)}; raise calibration_rows"
            )
        return found


def quantize_gptq(
    model_folder: Path,
    out: Path,
    calibration: Sequence[Sequence[int]],
    settings: GptqSettings,
    *,
    device: str,
    work: Path,
    reporter: Reporter,
    dtype: str | None = None,
) -> Rounding:
    """Quantize the linear layers of the blocks; everything else stays as it is.

    Nothing in it is random: the same model and texts give the same bytes on one kind of machine.

    Args:
        model_folder: The 16-bit model.
        out: Existing empty folder; gets a checkpoint that transformers, vLLM and AutoGPTQ load.
        calibration: Token ids of documents, already through the chat template, [texts][tokens].
        settings: How to round.
        device: cpu or cuda.
        work: Scratch on the filesystem of `out`.
        reporter: Is told of each block, and of layers that were not rounded as asked.
        dtype: torch name of the floating dtype that what is not quantized is written in; None
            keeps each tensor's own.

    Returns:
        Which layers were not rounded as asked.

    Raises:
        ConfigError: If the group size does not divide the in_features of a layer.
        ContractError: If the model is quantized already, or incomplete.
        ParityError: If a scale comes out as NaN or infinity.
    """
    check_quantizable(model_folder, settings.group_size)
    network = empty_model(read_causal_config(model_folder))
    draft = work / "gptq"
    shutil.rmtree(draft, ignore_errors=True)
    rounding = _run_gptqmodel(
        model_folder,
        draft,
        calibration,
        settings,
        # transformers holds all experts of a block in one tensor, and fills it with random numbers
        # where the files hold packed ones.
        left_out=[f"{re.escape(name)}\\..*" for name in fused_experts(network)],
        device=device,
        work=work,
        reporter=reporter,
    )
    for line in rounding.lines():
        reporter.message(line)
    assemble(model_folder, draft, out, network.base_model_prefix, dtype)
    return rounding


def _run_gptqmodel(
    model_folder: Path,
    draft: Path,
    calibration: Sequence[Sequence[int]],
    settings: GptqSettings,
    *,
    left_out: Sequence[str],
    device: str,
    work: Path,
    reporter: Reporter,
) -> Rounding:
    import_gptqmodel()
    from gptqmodel.looper import loop_processor, module_looper

    # Otherwise a log with a random name for each run, in the folder the process was started in.
    loop_processor._PROJECT_LOG_DIR = work / "gptqmodel-logs"
    # It writes a file to time the disk, and calls a disk that others use too an ERROR.
    module_looper.io_write_performance = lambda: None
    identity = {
        "version": BLOCKS_VERSION,
        "weights": weights_digest(model_folder),
        "texts": digest_of([list(ids) for ids in calibration]),
        "settings": asdict(settings),
        "left_out": list(left_out),
        "device": device,
        "libraries": {name: version(name) for name in ("gptqmodel", "torch", "transformers")},
    }
    with (
        no_library_noise(),
        errors_of_workers(),
        mended_grids(),
        finished_blocks(work / "finished-blocks", identity, reporter) as keep,
        said_damping(reporter),
    ):
        from gptqmodel import GPTQModel, QuantizeConfig

        config = QuantizeConfig(
            **gptqmodel_settings(settings, left_out),
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
            keep(layer_idx)
            if submodule_finalized:
                reporter.progress(layer_idx + 1, blocks, "blocks")

        model.layer_callback = layer_complete
        model.quantize(
            [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in calibration],
            batch_size=GPTAQ_BATCH if settings.gptaq_alpha else CALIBRATION_BATCH,
            calibration_data_min_length=MIN_TOKENS,
        )
        # It prints both configurations.
        with redirect_stdout(io.StringIO()):
            model.save(str(draft))
        rounding = _rounding(model.quant_log, settings)
        del model
    clear_memory()
    return rounding


def _rounding(log: Sequence[Mapping[str, Any]], settings: GptqSettings) -> Rounding:
    """Read GPTQModel's own log: a layer each, with the damping it took and its loss."""
    damped: dict[str, float] = {}
    to_nearest: list[str] = []
    for entry in log:
        name, damp = f"block {entry['layer']} {entry['module']}", float(entry["damp"])
        # It writes a word where a layer has no loss, because it was rounded without its Hessian.
        if "fallback" in str(entry["loss"]):
            to_nearest.append(name)
        elif damp > settings.damp_percent + 1e-5:
            damped[name] = damp
    return Rounding(damped, () if settings.round_to_nearest else tuple(to_nearest))


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
