"""Calibration text for GPTQ: from the training distribution, never from what is measured on."""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.data.artifact import TRAIN
from requant.data.chat_template import dialect, read_rules, render
from requant.data.checks import check_control
from requant.data.overlap import answers, measured_texts
from requant.data.samples import read_rows
from requant.errors import ContractError


@dataclass(frozen=True)
class Calibration:
    """Conversations through the chat template, and where they came from."""

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    """Line numbers in train.jsonl, from 0, in the order of `texts`."""
    dropped: int
    """Sampled rows that are also held out or evaluated on, or that spell control tokens."""
    seed: int

    def as_record(self) -> dict[str, Any]:
        """What to keep beside a model, so that its calibration can be repeated and checked."""
        digest = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        return {
            "seed": self.seed,
            "rows": list(self.rows),
            "dropped": self.dropped,
            "sha256": digest,
        }


def sample_calibration(tokenizer: Any, data: Path, rows: int, seed: int) -> Calibration:
    """Sample training conversations that nobody measures on.

    A row is dropped when the normalised text of one of its answers is an answer in heldout.jsonl
    or a value in an evaluation document.

    Args:
        tokenizer: With the chat template of the model.
        data: Dataset artifact.
        rows: At most this many are taken.
        seed: Of the order in which rows are tried.

    Raises:
        ContractError: If no row is left.
    """
    train = read_rows(data / TRAIN)
    measured = measured_texts(data)
    words = dialect(tokenizer, read_rules(data))
    order = random.Random(seed).sample(range(len(train)), len(train))
    taken: list[int] = []
    dropped = 0
    for index in order:
        if len(taken) == rows:
            break
        # Only ids could keep control tokens that a text spells apart, and this is text.
        spells_control = check_control(words, train[index])
        if not spells_control and measured.isdisjoint(answers(train[index])):
            taken.append(index)
        else:
            dropped += 1
    if not taken:
        raise ContractError(
            f"calibration: all {len(train)} rows of {data / TRAIN} are also held out or "
            "evaluated on, or spell control tokens, so figures of the quantized model would mean "
            "nothing; give training and held-out files with different rows"
        )
    return Calibration(
        texts=tuple(
            train[index]["text"]
            if "text" in train[index]
            else render(words, train[index]["messages"], train[index])
            for index in taken
        ),
        rows=tuple(taken),
        dropped=dropped,
        seed=seed,
    )
