"""What of a night's gain survives 4 bit, by how it is rounded: candidates side by side in one run.

    python -m benchmarks.requantization BASE TUNED DATA [--log FILE] [--only NAME ...]

BASE and TUNED are 16-bit model folders (of `make real`: prepare_base and continue_train), DATA is
the night's dataset artifact. Both models are quantized in the same way, and measured on held-out
rows and old text that neither calibrates nor judges the gate. A result is written to the log as it
comes; names that are in the log are not measured again. Some ten minutes a candidate on two cores.

The documents are few and short because a token costs two cores 5 ms: 64 answers, 24 old texts.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from requant.comparison.batches import Batch, held_out_batches, text_batches
from requant.config.quantizing import RequantizeGptq
from requant.config.task_names import HELDOUT_PERPLEXITY, OLD_PERPLEXITY
from requant.corpus import topics
from requant.data.artifact import GENERAL, HELDOUT, task_documents
from requant.data.chat_template import read_rules
from requant.data.overlap import Measured, answers, even
from requant.data.plain_text import chunks
from requant.data.samples import read_rows
from requant.data.turns import IGNORED
from requant.models.headers import read_headers
from requant.models.load import corrected, load_model
from requant.models.tokenizer import load_tokenizer
from requant.quantization.auto_round import quantize_auto_round
from requant.quantization.calibration import encode_calibration, read_pool, sample_calibration
from requant.quantization.eora import correction_bits, write_correction
from requant.quantization.gptq import quantize_gptq
from requant.quantization.settings import GptqSettings, settings_of
from requant.statistics import Estimate, paired_difference, ratio_estimate

if TYPE_CHECKING:
    import torch

GENERAL_DOCUMENTS = 24
NEW_DOCUMENTS = 64
TOKENS = 192
BATCH = 8
SEED = 0

Fields = Mapping[str, Any]
COMMON: Fields = {"group_size": 64, "calibration_rows": 96, "calibration_length": 256}
PLAIN: Fields = {"mse": 0.0, "general_share": 0.0, "calibration_rows": 64}
CANDIDATES: Mapping[str, Fields] = {
    "plain": PLAIN,
    "default": {},
    "asymmetric": {"symmetric": False},
    "asymmetric, no search": {"symmetric": False, "mse": 0.0},
    "round to nearest": {"round_to_nearest": True, "mse": 0.0},
    "groups of 32": {"group_size": 32},
    "EoRA, rank 2": {"eora_rank": 2},
    "EoRA, rank 8": {"eora_rank": 8},
    "EoRA, rank 32": {"eora_rank": 32},
    "AutoRound, 50 steps": {"method": "auto_round", "auto_round_iterations": 50},
    "desc_act": {"desc_act": True},
    "GPTAQ": {"gptaq_alpha": 0.25},
    "128 training rows": {"calibration_rows": 192},
}
"""Each on top of COMMON and the defaults of requantize_gptq."""


@dataclass(frozen=True)
class Measured4Bit:
    """A 4-bit model against its 16-bit original on one kind of text."""

    kl: float
    """Nats per token, 16 bit against 4 bit."""
    kl_99: float
    """The 99th percentile over tokens."""
    agreement: float
    log_likelihood: tuple[float, ...]
    """Log-likelihood of each document under the 4-bit model, nats."""
    log_likelihood_16bit: tuple[float, ...]


def documents(model: Path, data: Path) -> dict[str, list[Batch]]:
    """Take text that nobody trains on, calibrates on or judges by: the new skill, and old text."""
    tokenizer = load_tokenizer(model)
    asked = [row["text"] for row in read_rows(task_documents(data, HELDOUT_PERPLEXITY))]
    judged = Measured(map(even, asked))
    rows = [row for row in read_rows(data / HELDOUT) if not judged.holds(answers(row))]
    new = [(f"row {index}", row) for index, row in enumerate(rows[:NEW_DOCUMENTS])]
    taken = [row["text"] for row in read_rows(task_documents(data, OLD_PERPLEXITY))]
    taken += [row["text"] for row in read_rows(data / GENERAL)]
    known = Measured(map(even, taken))
    text = "\n\n".join(text for _, text in topics())
    pieces = [piece for piece in dict.fromkeys(chunks(text)) if not known.holds([even(piece)])]
    old = random.Random(SEED).sample(pieces, min(GENERAL_DOCUMENTS, len(pieces)))
    return {
        "new": held_out_batches(tokenizer, new, TOKENS, read_rules(data)),
        "old": text_batches(tokenizer, old, TOKENS),
    }


def log_probs(model: Any, batches: Sequence[Batch]) -> Iterator[tuple[int, "torch.Tensor"]]:
    """Yield the log-probabilities that predict each document's labelled tokens, several at once.

    Yields:
        Index of the document, and float32 [labelled tokens, vocabulary].
    """
    import torch

    order = sorted(range(len(batches)), key=lambda index: batches[index][0].shape[1])
    for start in range(0, len(order), BATCH):
        part = [(index, *batches[index]) for index in order[start : start + BATCH]]
        # What stands right of a document's last token changes nothing before it.
        ids = torch.zeros(len(part), max(each.shape[1] for _, each, _ in part), dtype=torch.int64)
        for row, (_, each, _) in enumerate(part):
            ids[row, : each.shape[1]] = each[0]
        with torch.inference_mode():
            hidden = model.model(input_ids=ids).last_hidden_state
            for row, (index, _, labels) in enumerate(part):
                chosen = labels[0, 1:] != IGNORED
                logits = model.lm_head(hidden[row, : labels.shape[1] - 1][chosen])
                yield index, logits.float().log_softmax(-1)


def targets(batch: Batch) -> "torch.Tensor":
    """The labelled tokens of a document, int64 [labelled tokens, 1]."""
    labels = batch[1][0, 1:]
    return labels[labels != IGNORED].unsqueeze(-1)


def measure(
    reference: Sequence["torch.Tensor"], model: Any, batches: Sequence[Batch]
) -> Measured4Bit:
    """Measure a 4-bit model on documents of one kind.

    Args:
        reference: float16 log-probabilities of the 16-bit model, one a document.
        model: The 4-bit model.
        batches: The documents.
    """
    divergences: list[float] = []
    agreed = 0.0
    ours, theirs = [0.0] * len(batches), [0.0] * len(batches)
    for index, candidate in log_probs(model, batches):
        expected = reference[index].float()
        divergences += (expected.exp() * (expected - candidate)).sum(-1).tolist()
        agreed += float((expected.argmax(-1) == candidate.argmax(-1)).sum())
        ours[index] = float(expected.gather(-1, targets(batches[index])).sum())
        theirs[index] = float(candidate.gather(-1, targets(batches[index])).sum())
    divergences.sort()
    return Measured4Bit(
        kl=sum(divergences) / len(divergences),
        kl_99=divergences[int(0.99 * len(divergences))],
        agreement=agreed / len(divergences),
        log_likelihood=tuple(theirs),
        log_likelihood_16bit=tuple(ours),
    )


def dense(model: Any) -> Any:
    """Put the weights that the kernel multiplies with into plain layers, unpacked once."""
    import torch

    for name, module in list(model.named_modules()):
        if hasattr(module, "qweight"):
            weight = module.dequantize_weight().t().contiguous().float()
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                layer.bias = torch.nn.Parameter(module.bias.float(), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
    # A LoRA may be merged into plain layers.
    model.quantization_method = None
    return model


def bits_a_weight(folder: Path) -> float:
    """Bits of the packed layers and of a correction, for each of their weights."""
    from safetensors import safe_open

    packed = {
        name: header
        for name, header in read_headers(folder).items()
        if name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))
    }
    size = sum(header.end - header.start for header in packed.values())
    weights = 0
    for name, header in packed.items():
        if name.endswith(".g_idx"):
            with safe_open(header.file, framework="pt") as file:
                columns = file.get_slice(name).get_shape()[0]
                scales = name.removesuffix("g_idx") + "scales"
                weights += columns * file.get_slice(scales).get_shape()[1]
    return (8 * size + correction_bits(folder)) / weights


class _Saying:
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def message(self, text: str) -> None:
        print(f"  {text}", flush=True)


def quantize(model: Path, data: Path, fields: Fields, out: Path, work: Path) -> dict[str, float]:
    """Quantize a model as a candidate says; return seconds, tokens of calibration and its bits."""
    chosen = {**COMMON, **fields}
    nearest = chosen.pop("round_to_nearest", False)
    section = RequantizeGptq.model_validate(chosen)
    settings: GptqSettings = settings_of(section)
    if nearest:
        settings = GptqSettings(**{**vars(settings), "round_to_nearest": True})
    tokenizer = load_tokenizer(model)
    calibration = sample_calibration(
        tokenizer, read_pool(data), section.calibration_rows, SEED, section.general_share
    )
    encoded = encode_calibration(tokenizer, calibration.texts, section.calibration_length)
    started = time.monotonic()
    common: dict[str, Any] = {"device": "cpu", "work": work, "reporter": _Saying()}
    if section.method == "auto_round":
        steps = section.auto_round_iterations
        quantize_auto_round(model, out, encoded.ids, settings, steps, seed=SEED, **common)
    else:
        quantize_gptq(model, out, encoded.ids, settings, **common)
    if section.eora_rank:
        options = {"device": "cpu", "reporter": _Saying()}
        write_correction(model, out, encoded.ids, section.eora_rank, **options)
    return {
        "seconds": time.monotonic() - started,
        "tokens": float(encoded.tokens),
        "bits": bits_a_weight(out),
    }


def run(base: Path, tuned: Path, data: Path, log: Path, names: Sequence[str]) -> None:
    """Measure the candidates that the log does not hold yet, and add each to it."""
    batches = documents(base, data)
    done = {entry["name"] for entry in read_log(log)}
    references: dict[Path, dict[str, list[torch.Tensor]]] = {}
    for name in names:
        if name in done:
            continue
        entry: dict[str, Any] = {"name": name, "fields": dict(CANDIDATES[name])}
        for role, model in (("base", base), ("tuned", tuned)):
            if model not in references:
                references[model] = {kind: _reference(model, batches[kind]) for kind in batches}
            with tempfile.TemporaryDirectory() as scratch:
                out, work = Path(scratch, "out"), Path(scratch, "work")
                out.mkdir()
                work.mkdir()
                made = quantize(model, data, CANDIDATES[name], out, work)
                candidate = dense(load_model(out, "cpu"))
                if CANDIDATES[name].get("eora_rank"):
                    candidate = corrected(candidate, out).merge_and_unload()
                shutil.rmtree(out)
            entry[role] = made | {
                kind: vars(measure(references[model][kind], candidate, batches[kind]))
                for kind in batches
            }
            print(f"{name}, {role}: {made['seconds']:.0f} s", flush=True)
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _reference(model: Path, batches: Sequence[Batch]) -> "list[torch.Tensor]":
    found = dict(log_probs(load_model(model, "cpu"), batches))
    # Half of the memory: 24 texts of 192 tokens and a vocabulary of 49,152 are 0.9 GB.
    return [found[index].half() for index in range(len(batches))]


def read_log(log: Path) -> list[dict[str, Any]]:
    """Read what was measured so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def survival(entry: Mapping[str, Any], kind: str = "new") -> Estimate:
    """Share of the night's gain that 4 bit keeps: 4 bit over 4 bit, against 16 bit over 16 bit.

    sum_d (l4(tuned, d) - l4(base, d)) / sum_d (l16(tuned, d) - l16(base, d)) over documents d, the
    error by the delta method over documents.
    """
    gains = []
    for which in ("log_likelihood", "log_likelihood_16bit"):
        tuned, base = entry["tuned"][kind][which], entry["base"][kind][which]
        gains.append([after - before for after, before in zip(tuned, base, strict=True)])
    return ratio_estimate(*gains)


def table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Lay the candidates side by side; times as ratios to the first that was calibrated."""
    columns = ("candidate", "bits", "tokens", "time", "KL new", "old", "99 %", "agree")
    found = Table(*columns, "gain kept", "95 %", "old text, 4 bit: tuned - base, nats a text")
    unit = next((e["tuned"]["seconds"] for e in entries if e["name"] == "plain"), None)
    for entry in entries:
        tuned = entry["tuned"]
        new, old = tuned["new"], tuned["old"]
        kept = survival(entry)
        low, high = kept.interval(len(new["log_likelihood"]))
        pairs = zip(old["log_likelihood"], entry["base"]["old"]["log_likelihood"], strict=True)
        lost = paired_difference([after - before for after, before in pairs])
        found.add_row(
            entry["name"],
            f"{tuned['bits']:.2f}",
            f"{tuned['tokens']:.0f}",
            f"{tuned['seconds'] / unit:.2f}x" if unit else f"{tuned['seconds']:.0f} s",
            f"{new['kl']:.4f}",
            f"{old['kl']:.4f}",
            f"{new['kl_99']:.2f}",
            f"{new['agreement']:.1%}",
            f"{kept.mean:.0%}",
            f"{low:.0%} to {high:.0%}",
            f"{lost.mean:+.2f} ({lost.low:+.2f} to {lost.high:+.2f})",
        )
    return found


def main() -> None:
    """Measure and print; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requantization")
    for name in ("base", "tuned", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--log", type=Path, default=Path(".requant/requantization.jsonl"))
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    chosen = parser.parse_args()
    chosen.log.parent.mkdir(parents=True, exist_ok=True)
    run(chosen.base, chosen.tuned, chosen.data, chosen.log, chosen.only)
    order = [entry for entry in read_log(chosen.log) if entry["name"] in chosen.only]
    Console(width=150).print(table(order))


if __name__ == "__main__":
    main()
