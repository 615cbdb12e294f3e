"""requantize_gptq: the 16-bit result into the 4-bit model that is shipped."""

from pathlib import Path

from requant.comparison.divergence import divergence_words, exceeds
from requant.config.quantizing import RequantizeGptq
from requant.data.artifact import HELDOUT
from requant.errors import ParityError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.models.folder import served_dtype, stored_dtype


def execute(section: RequantizeGptq, context: StageContext, *, model: Path, data: Path) -> Metrics:
    """Quantize with calibration text from the training distribution, then measure the loss of it.

    Args:
        section: Of GPTQ, and the limit.
        context: Of the stage.
        model: The 16-bit model.
        data: Dataset artifact: train.jsonl calibrates, heldout.jsonl measures.

    Returns:
        kl (nats per token, 16 bit against 4 bit), agreement (share of tokens with the same most
        likely token), loss_16bit, loss_4bit, size_ratio, unquantized_share (of the
        blocks' parameters, such as routed experts, that stay in 16 bit), and what
        `requant.quantization.best_of.quantize_best` gives.

    Raises:
        ConfigError: If group_size does not divide the in_features of a layer, or the calibration
            has too few tokens.
        ContractError: If the model is quantized already, or no row is left to calibrate on.
        ParityError: If the 4-bit model is further from the 16-bit one than the limit.
    """
    from requant.comparison.folders import compare_folders, size_ratio
    from requant.models.pairing import check_pairing
    from requant.quantization.best_of import quantize_best
    from requant.quantization.quantizable import unquantized

    calibration = quantize_best(
        section, context, model=model, data=data, dtype=_dtype(section.dtype, model)
    )
    check_pairing(model, context.out)
    skipped = unquantized(context.out)
    if skipped.sizes:
        context.reporter.message(str(skipped))
    context.reporter.message("measuring fidelity")
    fidelity = compare_folders(
        model,
        context.out,
        data / HELDOUT,
        rows=section.fidelity_rows,
        device=context.device,
        reporter=context.reporter,
    )
    metrics = {
        "kl": fidelity.kl,
        "agreement": fidelity.agreement,
        "loss_16bit": fidelity.loss_reference,
        "loss_4bit": fidelity.loss_candidate,
        "size_ratio": size_ratio(context.out, model),
        "unquantized_share": skipped.share,
        **calibration,
    }
    check_fidelity(metrics, section)
    return metrics


def _dtype(chosen: str, model: Path) -> str | None:
    """Resolve `auto`: a float32 master is for training on, nobody serves it."""
    if chosen != "auto":
        return chosen
    served = served_dtype(model)
    return None if str(stored_dtype(model)) == f"torch.{served}" else served


def check_fidelity(metrics: Metrics, section: RequantizeGptq) -> None:
    """Refuse a quantized model that is too far from what was trained.

    Raises:
        ParityError: With the figures, the limit, the likely cause and the way out.
    """
    if not exceeds(metrics["kl"], section.fidelity_max_kl):
        return
    raise ParityError(
        f"requantize_gptq: {section.bits} bit differs from 16 bit by {metrics['kl']:.3g} nats per "
        f"token, limit requantize_gptq.fidelity_max_kl={section.fidelity_max_kl:g} (loss "
        f"{metrics['loss_16bit']:.4g} in 16 bit, {metrics['loss_4bit']:.4g} quantized; "
        f"{metrics['calibration_tokens']:.0f} calibration tokens); likely too little calibration "
        "text or too coarse a grid: raise requantize_gptq.calibration_rows, lower group_size, set "
        "desc_act, or use bits=8"
    )


STAGE = Stage(
    name="requantize_gptq",
    version=3,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "gptqmodel", "optimum", "safetensors"),
    execute=execute,
    artifact="gptq",
    headline=(divergence_words(), divergence_words("fidelity_")),
    data_use="calibration",
)
