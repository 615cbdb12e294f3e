"""Several ways to quantize, of which the one closest to 16 bit is shipped."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from requant.comparison.batches import FIDELITY_TOKENS, Batch, held_out_batches
from requant.comparison.divergence import compare_log_probs
from requant.comparison.folders import folder_log_probs
from requant.config.quantizing import RequantizeGptq
from requant.data.artifact import TRAIN
from requant.errors import ContractError
from requant.execution.stage import Metrics, StageContext, empty_folder
from requant.models.tokenizer import load_tokenizer
from requant.quantization.calibrated import quantize_calibrated
from requant.quantization.calibration import general_texts, read_pool, sample_calibration
from requant.quantization.quantizable import check_quantizable

FEWEST_ROWS = 8
"""Rows that a choice needs: of fewer one odd text decides."""


def quantize_best(
    section: RequantizeGptq, context: StageContext, *, model: Path, data: Path, dtype: str | None
) -> Metrics:
    """Quantize as the section says, or as the best of its candidates, into `context.out`.

    Each candidate is the section with some of its fields changed. Their KL against 16 bit is
    measured on training rows that calibrate none of them and that no evaluation asks.

    Args:
        section: Fields and candidates.
        context: Of the stage.
        model: The 16-bit model.
        data: Dataset artifact.
        dtype: As `quantize_calibrated`.

    Returns:
        As `quantize_calibrated`; with candidates also candidate (from 1, as they are listed) and
        candidate_kl (nats a token, on the rows it was chosen by).

    Raises:
        ContractError: If too few rows are left to choose by; else as `quantize_calibrated`.
    """
    if not section.candidates:
        return quantize_calibrated(
            section, "requantize_gptq", context, model=model, data=data, dtype=dtype
        )
    tried = section.tried()
    for fields in tried:
        check_quantizable(model, fields.group_size, fields.tensor_parallel)
    batches = _rows_to_choose_by(tried, section.candidate_rows, model, data, context.seed)
    reference = list(folder_log_probs(model, batches, context.device))
    least, best = float("inf"), 0
    found: list[Metrics] = []
    folders = [context.work / f"candidate-{number}" for number in range(1, len(tried) + 1)]
    for folder, fields, given in zip(folders, tried, section.candidates, strict=True):
        # What an attempt that was ended has quantized of this candidate stays.
        (folder / "work").mkdir(parents=True, exist_ok=True)
        own = replace(context, out=empty_folder(folder / "out"), work=folder / "work")
        found.append(
            quantize_calibrated(fields, "requantize_gptq", own, model=model, data=data, dtype=dtype)
        )
        candidate = folder_log_probs(own.out, batches, context.device)
        kl = compare_log_probs(reference, candidate, batches).kl
        found[-1] |= {"candidate": float(len(found)), "candidate_kl": kl}
        context.reporter.message(
            f"candidate {len(found)} of {len(tried)} ({given.chosen()}): KL {kl:.4g}"
        )
        # NaN is less than nothing, so it is never chosen while another is a number.
        if kl < least:
            least, best = kl, len(found) - 1
    context.reporter.message(f"candidate {best + 1} is shipped")
    for path in sorted((folders[best] / "out").iterdir()):
        shutil.move(path, context.out / path.name)
    for folder in folders:
        shutil.rmtree(folder)
    return found[best]


def _rows_to_choose_by(
    tried: Sequence[RequantizeGptq], count: int, model: Path, data: Path, seed: int
) -> list[Batch]:
    """Take the training rows that come after those of the longest calibration."""
    tokenizer = load_tokenizer(model)
    pool = read_pool(data)
    taken = max(
        each.calibration_rows - general_texts(pool, each.calibration_rows, each.general_share)
        for each in tried
    )
    rows = sample_calibration(tokenizer, pool, taken + count, seed).rows[taken:]
    if len(rows) < min(FEWEST_ROWS, count):
        raise ContractError(
            f"requantize_gptq.candidates: {len(rows)} training rows are left to choose by after "
            f"{taken} that calibrate, expected at least {min(FEWEST_ROWS, count)}; lower "
            "requantize_gptq.calibration_rows, or give prepare_data more rows"
        )
    placed = [(f"{TRAIN}, line {index + 1}", pool.train[index]) for index in rows]
    return held_out_batches(tokenizer, placed, FIDELITY_TOKENS, pool.rules)
