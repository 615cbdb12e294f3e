"""What people do by hand: one QLoRA adapter trained on and on, merged in place into 4 bit.

No ledger, no replay, no gate. It is spared one mistake, so that the measure stays one: rows that
are measured on are taken out of what it trains on.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurement import Silent
from benchmarks.nights.lines import NightResult
from requant.config import Config
from requant.data.artifact import TRAIN
from requant.data.chat_template import Rules, write_rules
from requant.data.formats import Row
from requant.data.rows import write_jsonl
from requant.execution.stage import StageContext
from requant.machine.library_noise import no_library_noise
from requant.models.tokenizer import load_tokenizer
from requant.quantization.bitsandbytes import load_quantized
from requant.stages.train_adapter import execute as train_adapter


def naive_night(
    config: Config,
    folder: Path,
    bases: tuple[Path, Path],
    number: int,
    brought: Sequence[Row],
) -> NightResult:
    """Train the adapter of the night before on what a night brings, and merge it.

    Args:
        config: Of any line of the same sizes: what is trained, and for how long.
        folder: Of the arm.
        bases: The original, and its NF4 base.
        number: Of the night, from 1.
        brought: Rows without those that are measured.
    """
    original, quantized = bases
    started = time.monotonic()
    merged = folder / "4bit"
    if not brought:
        return NightResult("nothing to do", "", str(merged.resolve()), None, 0, 0, 0)
    night, adapter = folder / f"night-{number}", folder / "adapter"
    write_jsonl(night / TRAIN, brought)
    write_rules(night, Rules())
    tuned = folder / f"adapter-{number}"
    tuned.mkdir(exist_ok=True)
    metrics = train_adapter(
        config.train_adapter,
        StageContext(tuned, night / "work", config.seed, "cpu", Silent()),
        base=quantized,
        data=night,
        start=adapter if adapter.exists() else None,
    )
    _merge_in_place(original, tuned, folder / f"4bit-{number}")
    for link, target in ((adapter, tuned), (merged, folder / f"4bit-{number}")):
        draft = link.with_name(f".{link.name}")
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        draft.replace(link)
    return NightResult(
        verdict="accepted",
        reason="there is no gate",
        model=str(folder / f"4bit-{number}"),
        data=None,
        steps=metrics["steps"],
        rows=float(len(brought)),
        seconds=time.monotonic() - started,
    )


def _merge_in_place(original: Path, adapter: Path, out: Path) -> None:
    """Merge as peft does into bitsandbytes' 4 bit: dequantize, add, round again.

    The original is quantized while it is loaded, to the bits of the NF4 base: transformers cannot
    save what it has loaded from a quantized folder.
    """
    from peft import PeftModel

    with no_library_noise():
        base = load_quantized(original, "nf4", "cpu")
        PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(out)
    load_tokenizer(original).save_pretrained(out)
