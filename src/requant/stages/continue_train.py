"""continue_train: further training of the merged 16-bit model, and what was saved of it."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from requant.comparison.divergence import Fidelity
from requant.config.training import ContinueTrain
from requant.data.artifact import HELDOUT
from requant.execution.stage import Metrics, Stage, StageContext, empty_folder
from requant.merging.change import Change
from requant.merging.rounding import (
    Rounding,
    check_rounding,
    describe_rounding,
    limits_missed,
    measure_rounding,
)
from requant.training.blocks import select_trainable
from requant.training.words import LOSSES


def execute(section: ContinueTrain, context: StageContext, *, model: Path, data: Path) -> Metrics:
    """Train all weights, or the top blocks with the final norm, and measure what was saved.

    Shards keep their names, tensors their dtypes; what the network does not load stays as it is.

    Args:
        section: Scope and duration, limits on what rounding may take.
        context: Of the stage; `context.work` keeps the checkpoints.
        model: 16-bit model artifact, or a float32 master.
        data: Dataset artifact; `heldout.jsonl` is measured on.

    Returns:
        The figures of `fine_tune`, whose loss is of the weights in float32; of held-out text
        heldout_loss_before, heldout_loss_trained (float32) and heldout_loss_saved, nats per token;
        float32_master (1 where the own dtype was too coarse); rounding_ratio, kept_share and
        changed_share of the weights; rounding_* and update_*: see `Rounding`.

    Raises:
        ContractError: If `layers` is more than the model has, or a trained tensor has no place in
            the model's files.
        ParityError: If rounding takes more of what was learned than the limits allow.
        TerminalError: As `fine_tune`.
    """
    from accelerate import PartialState
    from transformers import set_seed

    from requant.merging.trained import tied_names
    from requant.models.device import clear_memory
    from requant.models.load import load_model
    from requant.models.tokenizer import load_tokenizer
    from requant.training.fine_tune import fine_tune

    set_seed(context.seed)
    network = load_model(model, context.device, trainable=True)
    select_trainable(network, section.layers if section.scope == "top_layers" else None)
    tokenizer = load_tokenizer(model)
    metrics = fine_tune(network, tokenizer, data, section.optimisation, context)
    if not PartialState().is_main_process:
        return metrics
    trained, tied = empty_folder(context.work / "trained"), tied_names(network)
    # What was trained is in float32; the rest has its own dtype on a GPU, where there is no room.
    network.to("cpu").save_pretrained(trained)
    # Three models are measured next, one at a time.
    del network
    clear_memory()
    found = _save(section, context, trained, tied, model, data)
    shutil.rmtree(trained)
    return metrics | found


def _save(
    section: ContinueTrain,
    context: StageContext,
    trained: Path,
    tied: Sequence[Collection[str]],
    model: Path,
    data: Path,
) -> Metrics:
    """Write the trained weights in a dtype that holds what was learned, and measure the result."""
    from requant.comparison.batches import batches_for
    from requant.merging.parity import stored_in
    from requant.merging.trained import write_trained

    batches = batches_for(model, data / HELDOUT, section.heldout_rows)

    def save(dtype: str | None) -> tuple[Mapping[str, Change], Rounding, Fidelity]:
        changes = write_trained(model, trained, context.out, tied=tied, dtype=dtype)
        context.reporter.message("measuring what was saved")
        return changes, *measure_rounding(
            trained, context.out, model, batches, context.device, context.reporter
        )

    own = section.dtype in {"auto", "original"}
    changes, rounding, saved = save(None if own else section.dtype)
    stored = stored_in(context.out, changes)
    master = section.dtype == "auto" and bool(limits_missed(rounding, section))
    if master:
        context.reporter.message(f"{describe_rounding(rounding, stored)}: saved in float32")
        for path in context.out.iterdir():
            path.unlink()
        changes, rounding, saved = save("float32")
        stored = "float32"
    check_rounding(rounding, stored, section)
    whole = sum(changes.values(), start=Change())
    return {
        "heldout_loss_before": saved.loss_reference + rounding.gain.mean,
        "heldout_loss_trained": saved.loss_reference,
        "heldout_loss_saved": saved.loss_candidate,
        "float32_master": float(master),
        "rounding_ratio": whole.rounding_ratio,
        "kept_share": whole.kept_share,
        "changed_share": whole.changed_share,
        **rounding.as_metrics(),
    }


STAGE = Stage(
    name="continue_train",
    version=3,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "trl", "accelerate", "bitsandbytes"),
    execute=execute,
    data_parallel=True,
    artifact="continued",
    headline=LOSSES,
)
