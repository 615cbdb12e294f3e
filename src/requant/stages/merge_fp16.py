"""merge_fp16: the adapter into the retained 16-bit original."""

from pathlib import Path

from requant.config.sections import MergeFp16
from requant.errors import ParityError
from requant.fidelity import compare_log_probs, exceeds
from requant.model_folder import copy_companions, set_dtype
from requant.parity import batches_for, folder_log_probs
from requant.stage import Metrics, Stage, StageContext


def execute(
    section: MergeFp16,
    context: StageContext,
    *,
    original: Path,
    trained_on: Path,
    adapter: Path,
    data: Path,
) -> Metrics:
    """Merge, then measure the merged model against the two models it stands for.

    Args:
        section: Dtype and limits.
        context: Of the stage.
        original: The retained 16-bit model that is merged into.
        trained_on: The model the adapter was trained on; the original itself when unquantized.
        adapter: peft folder.
        data: Dataset artifact; `heldout.jsonl` is read.

    Raises:
        ContractError: If the adapter does not fit the original.
        ParityError: If a weight is not finite, or a figure is over its limit.
    """
    import torch

    from requant.merging import merge_folder, read_updates

    context.reporter.message("merging")
    dtype = getattr(torch, section.dtype)
    metrics = merge_folder(original, read_updates(adapter), dtype, context.out)
    copy_companions(original, context.out, with_index=True)
    set_dtype(context.out, section.dtype)
    context.reporter.message("measuring parity")
    metrics |= measure_parity(
        merged=context.out,
        original=original,
        trained_on=trained_on,
        adapter=adapter,
        data=data,
        rows=section.parity_rows,
        device=context.device,
    )
    check_parity(metrics, section)
    return metrics


def measure_parity(
    *,
    merged: Path,
    original: Path,
    trained_on: Path,
    adapter: Path,
    data: Path,
    rows: int,
    device: str,
) -> Metrics:
    """Measure three distances on held-out assistant tokens.

    Returns:
        parity_*: merged against original+adapter, unmerged (a wrong scale or a missed module shows
        here); trained_*: merged against trained_on+adapter (what quantization costs the hand-over);
        update_kl: original+adapter against original (what there was to merge, nats per token).
    """
    batches = batches_for(original, data / "heldout.jsonl", rows)
    reference = list(folder_log_probs(original, batches, device, adapter=adapter))
    parity = compare_log_probs(reference, folder_log_probs(merged, batches, device), batches)
    update = compare_log_probs(reference, folder_log_probs(original, batches, device), batches)
    trained = parity
    if trained_on != original:
        reference = list(folder_log_probs(trained_on, batches, device, adapter=adapter))
        trained = compare_log_probs(reference, folder_log_probs(merged, batches, device), batches)
    return {
        **parity.as_metrics("parity_"),
        **trained.as_metrics("trained_"),
        "update_kl": update.kl,
        "parity_tokens": float(parity.tokens),
    }


def check_parity(metrics: Metrics, section: MergeFp16) -> None:
    """Refuse a merge that does not reproduce what was trained.

    Raises:
        ParityError: With the figure, its limit, the likely cause and the way out.
    """
    if exceeds(metrics["parity_kl"], section.parity_max_kl):
        raise ParityError(
            f"merge_fp16: merged differs from original+adapter by {metrics['parity_kl']:.3g} nats "
            f"per token, limit merge_fp16.parity_max_kl={section.parity_max_kl:g} (the adapter "
            f"itself moves the model by {metrics['update_kl']:.3g}); likely a missed module or a "
            "wrong scale: check that adapter and original belong together"
        )
    if exceeds(metrics["trained_kl"], section.trained_max_kl):
        raise ParityError(
            f"merge_fp16: merged differs from the quantized base+adapter that was trained by "
            f"{metrics['trained_kl']:.3g} nats per token, limit merge_fp16.trained_max_kl="
            f"{section.trained_max_kl:g} (against original+adapter: {metrics['parity_kl']:.3g}); "
            "the quantized base is far from the original: use a finer quantize_base.method"
        )


STAGE = Stage(
    name="merge_fp16",
    version=1,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "peft", "safetensors"),
    execute=execute,
)
