"""What a 4-bit model needs for held-out rows and old text: ln p of each document, nats a byte."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from requant.config.task_names import OLD_PERPLEXITY
from requant.data.artifact import HELDOUT, task_documents
from requant.data.chat_template import Rules
from requant.data.formats import Row
from requant.data.rows import answer
from requant.data.samples import encode_rows, read_rows
from requant.models.load import load_model
from requant.models.tokenizer import load_tokenizer

OLD = "old text"
BATCH = 16
TOKENS = 256


@dataclass(frozen=True)
class Documents:
    """What every generation of every arm is asked."""

    rows: Mapping[str, Sequence[Row]]
    """Domain, or `OLD` -> rows; of an answer, or of the whole of a plain text."""


def documents_of(datasets: Mapping[str, Path], count: int) -> Documents:
    """Take the first held-out rows of each domain's night, and the first pieces of old text.

    Args:
        datasets: Domain -> artifact of prepare_data of its night.
        count: Of each.
    """
    found: dict[str, Sequence[Row]] = {
        domain: read_rows(data / HELDOUT, count) for domain, data in datasets.items()
    }
    newest = [*datasets.values()][-1]
    with task_documents(newest, OLD_PERPLEXITY).open(encoding="utf-8") as file:
        found[OLD] = [{"text": json.loads(line)["text"]} for line in file][:count]
    return Documents(found)


def scores(model: Path, documents: Documents) -> dict[str, list[float]]:
    """Return domain -> score of each document, nats a byte: sum of ln p(token) over its bytes."""
    tokenizer, loaded = load_tokenizer(model), load_model(model, "cpu")
    return {
        name: _of_rows(loaded, tokenizer, rows) for name, rows in documents.rows.items() if rows
    }


def _of_rows(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[float]:
    samples = [
        encode_rows(tokenizer, [("row", row)], Rules(), TOKENS, "clip").samples[0] for row in rows
    ]
    said = [row["text"] if "text" in row else answer(row) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda index: len(samples[index]["input_ids"]))
    found = [0.0] * len(rows)
    for start in range(0, len(rows), BATCH):
        taken = by_length[start : start + BATCH]
        for index, total in zip(taken, _sums(model, [samples[i] for i in taken]), strict=True):
            found[index] = total / len(said[index].encode())
    return found


def _sums(model: Any, samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Sum ln p over the tokens that carry loss; padding stands on the right, where none sees it."""

    def padded(name: str, filler: int) -> torch.Tensor:
        rows = [torch.tensor(list(sample[name])) for sample in samples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filler)

    ids, labels = padded("input_ids", 0), padded("labels", -100)
    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    lost = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return [-float(each) for each in lost.sum(1)]
