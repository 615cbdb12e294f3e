"""quantize_base: the cheap base the adapter is trained on."""

import math
from pathlib import Path

from requant.comparison.divergence import divergence_words, exceeds
from requant.config.quantizing import QuantizeBase
from requant.data.artifact import HELDOUT
from requant.errors import ConfigError, ParityError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.models.provenance import weights_digest, write_provenance

FIDELITY_TEXTS = 8
"""Held-out answers, or pieces of Python's topics."""


def execute(
    section: QuantizeBase, context: StageContext, *, base: Path, data: Path | None = None
) -> Metrics:
    """Quantize the original into a checkpoint that loads, and prove that the two are a pair.

    Args:
        section: Method, and what GPTQ needs.
        context: Of the stage.
        base: The 16-bit original.
        data: Dataset artifact: calibration of gptq; the fidelity is measured on what it holds out.

    Returns:
        As `requant.quantization.fidelity`: kl, kl_p99, agreement, ln_ppl_ratio and their standard
        errors, loss_reference, loss_candidate, bits_per_weight, weight_error, size_ratio (of the
        weights' bytes) and unquantized_share (of the blocks' parameters, such as routed experts,
        that stay in 16 bit). Measured on Python's own topics where there is no dataset: NF4 and
        int8 look at none, so that they stay cached from night to night. Of gptq what
        `requant.quantization.calibrated.quantize_calibrated` gives, too.

    Raises:
        ConfigError: If gptq has no data, or its group_size does not divide a layer.
        ContractError: If base is quantized already, or the result does not pair with it.
        ParityError: If the quantized model's output is not finite, or further from the original's
            than the limit.
    """
    from requant.models.pairing import check_pairing
    from requant.quantization.bitsandbytes import quantize_bitsandbytes
    from requant.quantization.quantizable import check_quantizable

    gptq = section.method == "gptq"
    calibration: Metrics = {}
    if gptq:
        calibration = _quantize_gptq(section, context, base, data)
    else:
        check_quantizable(base, None)
        context.reporter.message(f"quantizing to {section.method}")
        quantize_bitsandbytes(base, context.out, section.method, context.device)
    check_pairing(base, context.out)
    write_provenance(context.out, original=weights_digest(base))
    context.reporter.message("measuring the quantized base")
    metrics = _measure(context, base, data)
    check_base_fidelity(metrics, section)
    return {**calibration, **metrics}


def check_base_fidelity(metrics: Metrics, section: QuantizeBase) -> None:
    """Refuse a base that quantization took too far from the original to train on.

    Raises:
        ParityError: With the figures, the limit, the likely cause and the way out.
    """
    kl = metrics["kl"]
    if not math.isfinite(kl):
        raise ParityError(
            f"quantize_base: KL against the original is {kl}; likely the base holds weights that "
            "are not finite or overflow in 16 bit: check the base, or set quantize_base.method to "
            "another of nf4, int8, gptq"
        )
    if exceeds(kl, section.fidelity_max_kl):
        others = " or ".join(name for name in ("int8", "gptq", "nf4") if name != section.method)
        raise ParityError(
            f"quantize_base: {section.method} differs from the original by {kl:.3g} nats per "
            f"token, limit quantize_base.fidelity_max_kl={section.fidelity_max_kl:g} (loss "
            f"{metrics['loss_reference']:.4g} before, {metrics['loss_candidate']:.4g} quantized); "
            f"an adapter would learn to mend it: set quantize_base.method to {others}, or train on "
            "the original (quantize_base.enabled=false)"
        )


def _quantize_gptq(
    section: QuantizeBase, context: StageContext, base: Path, data: Path | None
) -> Metrics:
    from requant.quantization.calibrated import quantize_calibrated

    if data is None:
        raise ConfigError(
            "quantize_base.method='gptq' needs calibration text, and this run has no prepare_data; "
            "set quantize_base.method to nf4 or int8, which need none"
        )
    return quantize_calibrated(section, "quantize_base", context, model=base, data=data)


def _measure(context: StageContext, base: Path, data: Path | None) -> Metrics:
    from requant.comparison.batches import batches_for, file_batches
    from requant.quantization.fidelity import measure_quantization

    if data is None:
        batches = file_batches(base, None, FIDELITY_TEXTS)
    else:
        batches = batches_for(base, data / HELDOUT, FIDELITY_TEXTS)
    return measure_quantization(
        base, context.out, batches, device=context.device, reporter=context.reporter
    ).as_metrics()


STAGE = Stage(
    name="quantize_base",
    version=6,
    kind="model",
    libraries=(
        "torch",
        "transformers",
        "tokenizers",
        "bitsandbytes",
        "gptqmodel",
        "optimum",
        "safetensors",
    ),
    execute=execute,
    artifact="quantized",
    headline=(divergence_words(), worded("{} of the base's size", "size_ratio")),
    data_use="calibration",
)
