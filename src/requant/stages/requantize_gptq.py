"""requantize_gptq: the 16-bit result into the 4-bit model that is shipped."""

import math
from pathlib import Path

from requant.comparison.divergence import divergence_words, exceeds
from requant.config.quantizing import RequantizeGptq
from requant.data.artifact import HELDOUT, TRAIN
from requant.errors import ParityError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.models.folder import (
    CALIBRATION_NAME,
    CARD_NAME,
    QUANTIZATION_NAME,
    served_dtype,
    stored_dtype,
)


def execute(
    section: RequantizeGptq,
    context: StageContext,
    *,
    model: Path,
    data: Path,
    base: Path | None = None,
) -> Metrics:
    """Quantize with calibration text from the training distribution, then measure the loss of it.

    Args:
        section: Of GPTQ, and the limit.
        context: Of the stage.
        model: The 16-bit model.
        data: Dataset artifact: train.jsonl calibrates, heldout.jsonl measures.
        base: The 16-bit model the night began with; what it gained is measured on the same text.

    Returns:
        As `requant.quantization.fidelity`: kl, kl_p99, agreement, ln_ppl_ratio and their standard
        errors, loss_reference (16 bit), loss_candidate (quantized), rtn_kl and rtn_ratio (KL of
        round-to-nearest, and over it), rtn_excess (KL above the limit's share of it, at least),
        gain and gain_lost (what the night won on this text, and what rounding cost of it, nats a
        token), gain_excess (what it cost beyond the limit's share, at least), bits_per_weight,
        weight_error, worst_weight_error, size_ratio and unquantized_share (of the blocks'
        parameters, such as routed experts, that stay in 16 bit); and what
        `requant.quantization.best_of.quantize_best` gives.

    Raises:
        ConfigError: If group_size does not divide the in_features of a layer, or the calibration
            has too few tokens.
        ContractError: If the model is quantized already, or no row is left to calibrate on.
        ParityError: If the quantized model is further from the 16-bit one than a limit, or a layer
            does not fit the format, or is read otherwise than it was written.
    """
    from requant.canonical import canonical_json
    from requant.comparison.batches import batches_for
    from requant.data.samples import read_rows
    from requant.models.config import read_model_config
    from requant.models.origin import origin_of
    from requant.models.pairing import check_pairing
    from requant.models.provenance import weights_digest
    from requant.outside.json_text import read_object
    from requant.quantization.best_of import quantize_best
    from requant.quantization.fidelity import measure_quantization
    from requant.quantization.model_card import Made, model_card
    from requant.store.manifest import hash_file

    calibration = quantize_best(
        section, context, model=model, data=data, dtype=_dtype(section.dtype, model)
    )
    check_pairing(model, context.out)
    context.reporter.message("measuring fidelity")
    measured = measure_quantization(
        model,
        context.out,
        batches_for(model, data / HELDOUT, section.fidelity_rows),
        device=context.device,
        reporter=context.reporter,
        nearest=True,
        before=base if base != model else None,
    )
    excess = measured.gain_excess(section.fidelity_max_gain_lost)
    metrics = {
        **({"gain_excess": excess} if excess > -math.inf else {}),
        **measured.as_metrics(),
        "rtn_excess": measured.rtn_excess(section.fidelity_max_rtn_ratio),
        **calibration,
    }
    check_fidelity(metrics, section)
    (context.out / QUANTIZATION_NAME).write_bytes(canonical_json(measured.weights.as_record()))
    made = Made(
        origin=origin_of(context.out),
        weights=weights_digest(model),
        training=hash_file(data / TRAIN),
        heldout=hash_file(data / HELDOUT),
        calibration=read_object(context.out / CALIBRATION_NAME)["sha256"],
        training_rows=len(read_rows(data / TRAIN)),
        calibration_texts=int(calibration["calibration_rows"] + calibration["calibration_general"]),
        calibration_tokens=int(calibration["calibration_tokens"]),
        settings=read_model_config(context.out)["quantization_config"],
    )
    (context.out / CARD_NAME).write_text(model_card(made, measured), encoding="utf-8")
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
    figures = (
        f"(loss {metrics['loss_reference']:.4g} in 16 bit, {metrics['loss_candidate']:.4g} "
        f"quantized; {metrics['calibration_tokens']:.0f} calibration tokens)"
    )
    if exceeds(metrics["kl"], section.fidelity_max_kl):
        raise ParityError(
            f"requantize_gptq: {section.bits} bit differs from 16 bit by {metrics['kl']:.3g} nats "
            f"per token, limit requantize_gptq.fidelity_max_kl={section.fidelity_max_kl:g} "
            f"{figures}; likely too little calibration text or too coarse a grid: raise "
            "requantize_gptq.calibration_rows, lower group_size, set desc_act, or use bits=8"
        )
    if exceeds(metrics.get("gain_excess", -math.inf), 0.0):
        raise ParityError(
            f"requantize_gptq: rounding to {section.bits} bit costs {metrics['gain_lost']:.3g} "
            f"nats per token of held-out text, where the night had won {metrics['gain']:.3g}, "
            f"limit requantize_gptq.fidelity_max_gain_lost={section.fidelity_max_gain_lost:g} of "
            f"it {figures}; what ships would be worse than the base it came from: raise "
            "requantize_gptq.calibration_rows, lower group_size, set eora_rank, or train longer"
        )
    if exceeds(metrics["rtn_excess"], 0.0):
        raise ParityError(
            f"requantize_gptq: {section.bits} bit differs from 16 bit by {metrics['kl']:.3g} nats "
            f"per token, {metrics['rtn_ratio']:.3g} times as much as rounding to nearest without "
            f"calibration ({metrics['rtn_kl']:.3g}), limit "
            f"requantize_gptq.fidelity_max_rtn_ratio={section.fidelity_max_rtn_ratio:g} {figures}; "
            "calibration did harm: raise requantize_gptq.calibration_rows with text like what is "
            "measured on, or raise damp_percent"
        )


STAGE = Stage(
    name="requantize_gptq",
    version=4,
    kind="model",
    libraries=(
        "torch",
        "transformers",
        "tokenizers",
        "gptqmodel",
        "auto-round",
        "optimum",
        "safetensors",
    ),
    execute=execute,
    artifact="gptq",
    headline=(divergence_words(), divergence_words("fidelity_")),
    data_use="calibration",
)
