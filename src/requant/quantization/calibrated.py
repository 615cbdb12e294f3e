"""GPTQ with calibration from a dataset artifact: what both stages that quantize have in common."""

from collections.abc import Sequence
from pathlib import Path

from requant.canonical import canonical_json
from requant.config.quantizing import GptqFields, RequantizeGptq
from requant.execution.stage import Metrics, StageContext
from requant.models.folder import CALIBRATION_NAME
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibration import (
    calibration_metrics,
    calibration_record,
    check_tokens,
    encode_calibration,
    read_pool,
    sample_calibration,
)
from requant.quantization.eora import write_correction
from requant.quantization.gptq import Rounding, quantize_gptq
from requant.quantization.quantizable import check_quantizable
from requant.quantization.settings import settings_of


def quantize_calibrated(
    fields: GptqFields,
    section: str,
    context: StageContext,
    *,
    model: Path,
    data: Path,
    dtype: str | None = None,
) -> Metrics:
    """Quantize a 16-bit model into `context.out`, with calibration.json beside it.

    Args:
        fields: Of GPTQ and of its calibration.
        section: They stand in, for errors.
        context: Of the stage; its seed orders the rows.
        model: The 16-bit model.
        data: Dataset artifact.
        dtype: torch name of the floating dtype of what is not quantized; None keeps each tensor's.

    Returns:
        calibration_rows, calibration_general (general texts), calibration_tokens, calibration_cut
        (texts longer than calibration_length), calibration_lost_tokens, calibration_dropped (rows
        that were passed over), calibration_measured (of those, the rows that are measured on),
        layers_damped (whose Hessian took more damping than asked) and layers_to_nearest (that too
        few tokens reached).

    Raises:
        ConfigError: If group_size does not divide a layer, or there are too few tokens.
        ContractError: If the model is quantized already, or no row is left to calibrate on.
        ParityError: If a scale comes out as NaN or infinity.
    """
    layers = check_quantizable(model, fields.group_size, getattr(fields, "tensor_parallel", 1))
    tokenizer = load_tokenizer(model)
    calibration = sample_calibration(
        tokenizer, read_pool(data), fields.calibration_rows, context.seed, fields.general_share
    )
    encoded = encode_calibration(tokenizer, calibration.texts, fields.calibration_length)
    context.reporter.message(
        f"quantizing to {fields.bits} bit on {len(calibration.rows)} conversations and "
        f"{len(calibration.general)} general texts; passed over {calibration.dropped}"
    )
    context.reporter.message(str(encoded))
    widest = max(layers.features.values(), default=0)
    check_tokens(encoded, fields.calibration_min_tokens or widest, section)
    rounding = _round(fields, context, model, encoded.ids, dtype)
    if rank := getattr(fields, "eora_rank", 0):
        write_correction(
            model, context.out, encoded.ids, rank, device=context.device, reporter=context.reporter
        )
    record = calibration_record(calibration, encoded)
    (context.out / CALIBRATION_NAME).write_bytes(canonical_json(record))
    return {
        **calibration_metrics(calibration, encoded),
        "layers_damped": float(len(rounding.damped)),
        "layers_to_nearest": float(len(rounding.to_nearest)),
    }


def _round(
    fields: GptqFields,
    context: StageContext,
    model: Path,
    ids: Sequence[Sequence[int]],
    dtype: str | None,
) -> Rounding:
    if isinstance(fields, RequantizeGptq) and fields.method == "auto_round":
        from requant.quantization.auto_round import quantize_auto_round

        quantize_auto_round(
            model,
            context.out,
            ids,
            settings_of(fields),
            fields.auto_round_iterations,
            seed=context.seed,
            device=context.device,
            work=context.work,
            reporter=context.reporter,
            dtype=dtype,
        )
        return Rounding({}, ())
    return quantize_gptq(
        model,
        context.out,
        ids,
        settings_of(fields),
        device=context.device,
        work=context.work,
        reporter=context.reporter,
        dtype=dtype,
    )
