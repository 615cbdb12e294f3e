"""train_on_grid: ternary updates of a GPTQ base's codes, shipped as they were trained."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from requant.config.training import TrainOnGrid
from requant.data.artifact import HELDOUT, TRAIN
from requant.errors import ConfigError, ContractError, ParityError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import figure
from requant.training.words import LOSSES

if TYPE_CHECKING:
    import torch

    from requant.comparison.batches import Batch
    from requant.quantization.dequantize import QuantizedFolder

SAME = 1e-6
"""Nats per token that a GPU's kernels may make of one model, loaded twice; on a CPU it is none."""


def execute(
    section: TrainOnGrid, context: StageContext, *, base: Path, original: Path, data: Path
) -> Metrics:
    """Train ternary updates of the codes, write them into the base's files, and undo that once.

    Args:
        section: What to train and for how long.
        context: Of the stage.
        base: GPTQ artifact.
        original: The 16-bit model it was made of, which the result is measured against.
        data: Dataset artifact; `heldout.jsonl` is measured on.

    Returns:
        The figures of `fine_tune`; of held-out text heldout_loss_before (the base) and
        heldout_loss_saved (what ships), nats per token, trained_kl (what was trained against what
        ships: 0) and trained_difference (the largest, of their log-probabilities); movable
        (weights in the layers that are trained), changed_share, clamped, delta_bytes, delta_share
        (of the model's bytes); and of what ships against the original what
        `requant.quantization.fidelity.Quantization` says.

    Raises:
        ConfigError: If the delta would be larger than the limit.
        ContractError: If the base is no GPTQ model, or lacks a layer of `target_modules`.
        ParityError: If what ships is not what was trained, or undoing it does not give the base.
        TerminalError: As `fine_tune`.
    """
    from transformers import set_seed

    from requant.comparison.batches import batches_for
    from requant.comparison.divergence import token_log_probs
    from requant.models.device import clear_memory
    from requant.models.load import load_model
    from requant.models.tokenizer import load_tokenizer
    from requant.quantization.dequantize import read_quantized
    from requant.quantization.fidelity import measure_quantization
    from requant.quantization.grid_delta import copy_small_files, write_delta
    from requant.quantization.grid_moves import move
    from requant.training.fine_tune import fine_tune
    from requant.training.on_grid import put_on_grid, updates_of

    quantized = read_quantized(base)
    _check_targets(section, quantized)
    _check_rank(section, quantized)
    batches = batches_for(base, data / HELDOUT, section.heldout_rows)
    set_seed(context.seed)
    # In the dtype that what ships is measured in: the floats that are trained are none of its own.
    network = load_model(base, context.device)
    layers = put_on_grid(
        network, quantized, section.target_modules, section.rank, section.omega, context.seed
    )
    before = list(token_log_probs(network, batches))
    metrics = fine_tune(network.train(), load_tokenizer(base), data, section.optimisation, context)
    trained = list(token_log_probs(network.eval(), batches))
    moves = updates_of(layers)
    del network, layers
    clear_memory()
    copy_small_files(base, context.out)
    counts, stayed = move(base, context.out, moves)
    context.reporter.message(
        f"{figure(counts.changed)} of {figure(counts.weights)} codes moved; {counts.clamped} more "
        "would have left the range, and stayed"
    )
    metrics |= _shipped(before, trained, context, batches)
    measured = measure_quantization(
        original, context.out, batches, device=context.device, reporter=context.reporter
    )
    metrics |= {
        **measured.as_metrics(),
        "movable": float(counts.weights),
        "changed_share": counts.changed / counts.weights,
        "clamped": float(counts.clamped),
    }
    _write_card(context.out, base, data, metrics)
    size = write_delta(base, context.out, moves, counts, stayed)
    share = size / _weights_bytes(context.out)
    _check_share(share, section)
    _prove_undo(context)
    return {**metrics, "delta_bytes": float(size), "delta_share": share}


def _check_targets(section: TrainOnGrid, quantized: "QuantizedFolder") -> None:
    if quantized.method != "gptq":
        raise ContractError(
            f"train_on_grid: {quantized.folder} is {quantized.method}, which has no integer codes "
            "to move; set quantize_base.method=gptq"
        )
    packed = {name.split(".")[-2] for name in quantized.headers if name.endswith(".qweight")}
    if unknown := sorted(set(section.target_modules) - packed):
        raise ContractError(
            f"train_on_grid.target_modules: {', '.join(unknown)} not quantized in this model; its "
            f"quantized layers are: {', '.join(sorted(packed))}"
        )


def _check_rank(section: TrainOnGrid, quantized: "QuantizedFolder") -> None:
    """Refuse a rank whose numbers alone are too many, before anything is trained."""
    from requant.quantization.grid_moves import bytes_of_numbers, layers_moved

    layers = layers_moved(quantized.headers, section.target_modules)
    needed = bytes_of_numbers(layers, quantized.headers, section.rank)
    _check_share(needed / _weights_bytes(quantized.folder), section)


def _check_share(share: float, section: TrainOnGrid) -> None:
    if share > section.delta_max_share:
        raise ConfigError(
            f"train_on_grid.rank: {section.rank} makes a delta of {share:.2%} of the model, limit "
            f"train_on_grid.delta_max_share={section.delta_max_share:g}; lower the rank, name "
            "fewer target_modules, or raise the limit"
        )


def _shipped(
    before: "Sequence[torch.Tensor]",
    trained: "Sequence[torch.Tensor]",
    context: StageContext,
    batches: "list[Batch]",
) -> Metrics:
    """Measure what ships, loaded from its files, against what was trained.

    Raises:
        ParityError: If they are not the same.
    """
    from requant.comparison.divergence import compare_log_probs
    from requant.comparison.folders import folder_log_probs

    context.reporter.message("measuring what was saved")
    saved = list(folder_log_probs(context.out, batches, context.device))
    same = compare_log_probs(trained, saved, batches)
    difference = max(
        float((a - b).abs().max()) for a, b in zip(trained, saved, strict=True) if a.numel()
    )
    if not abs(same.kl) <= SAME:
        raise ParityError(
            f"train_on_grid: what was saved differs from what was trained by {same.kl:.3g} nats "
            f"per token (limit {SAME:g}), and must be the same: set train_on_grid.enabled=false "
            "and report it"
        )
    return {
        "heldout_loss_before": compare_log_probs(before, saved, batches).loss_reference,
        "heldout_loss_saved": same.loss_candidate,
        "trained_kl": same.kl,
        "trained_difference": difference,
    }


def _write_card(out: Path, base: Path, data: Path, metrics: Mapping[str, float]) -> None:
    from requant.data.samples import read_rows
    from requant.models.config import read_model_config
    from requant.models.folder import CARD_NAME
    from requant.models.origin import origin_of
    from requant.models.provenance import weights_digest
    from requant.quantization.grid_card import OnGrid, grid_card
    from requant.store.manifest import hash_file

    made = OnGrid(
        origin=origin_of(base),
        weights=weights_digest(base),
        training=hash_file(data / TRAIN),
        heldout=hash_file(data / HELDOUT),
        training_rows=len(read_rows(data / TRAIN)),
        settings=read_model_config(base)["quantization_config"],
        metrics=metrics,
    )
    (out / CARD_NAME).write_text(grid_card(made), encoding="utf-8")


def _prove_undo(context: StageContext) -> None:
    """Undo what ships once, as a person would, who then finds every digest of the base."""
    from requant.quantization.grid_delta import DELTA, undo

    undone = context.work / "undone"
    shutil.rmtree(undone, ignore_errors=True)
    undo(context.out, context.out / DELTA, undone)
    shutil.rmtree(undone)


def _weights_bytes(folder: Path) -> int:
    from requant.models.headers import weight_files

    return sum(path.stat().st_size for path in weight_files(folder))


def _headline(metrics: Mapping[str, float]) -> str:
    share = metrics.get("changed_share")
    moved = "" if share is None else f", {share:.2%} of the codes moved"
    return f"{LOSSES[0](metrics)}{moved}"


STAGE = Stage(
    name="train_on_grid",
    version=1,
    kind="model",
    libraries=(
        "torch",
        "transformers",
        "tokenizers",
        "trl",
        "accelerate",
        "gptqmodel",
        "optimum",
        "safetensors",
    ),
    execute=execute,
    artifact="on the grid",
    headline=(_headline,),
)
