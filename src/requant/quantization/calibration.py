"""Calibration text for GPTQ: the training distribution and general text, never what is measured."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from requant.data.artifact import GENERAL, TRAIN
from requant.data.chat_template import Dialect, Rules, dialect, read_rules, render
from requant.data.checks import check_control
from requant.data.formats import Row
from requant.data.overlap import NGRAM, OVERLAP, Measured, answers, measured_texts, normalised
from requant.data.samples import read_rows
from requant.errors import ConfigError, ContractError
from requant.outside.tokenizer_patterns import naming_patterns

MIN_TOKENS = 10
"""GPTQModel drops sequences up to this length."""


@dataclass(frozen=True)
class Dropped:
    """Sampled rows that calibration did not take, by the first reason that held."""

    measured: int = 0
    """An answer is measured on, word for word or in half of its n-grams."""
    repeated: int = 0
    """The same text was taken already."""
    control: int = 0
    """Control tokens are spelled, which only ids could keep apart."""

    def __str__(self) -> str:
        return (
            f"{self.measured} that are measured on, {self.repeated} taken already, "
            f"{self.control} that spell control tokens"
        )


@dataclass(frozen=True)
class Calibration:
    """Conversations through the chat template, general text, and where they came from."""

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    """Line numbers in train.jsonl, from 0, in the order of the first of `texts`."""
    general: tuple[int, ...]
    """Line numbers in general.jsonl, from 0, in the order of the rest of `texts`."""
    dropped: Dropped
    seed: int


@dataclass(frozen=True)
class Encoded:
    """Calibration texts as token ids, and what of them was used."""

    ids: tuple[tuple[int, ...], ...]
    cut: int
    """Texts longer than the limit."""
    lost_tokens: int
    """Tokens of the cut texts beyond the limit."""
    too_short: int
    """Texts that GPTQModel does not take."""

    @property
    def tokens(self) -> int:
        """How many are read."""
        return sum(map(len, self.ids))

    def __str__(self) -> str:
        return (
            f"calibration: {self.tokens} tokens; {self.cut} texts cut, {self.lost_tokens} tokens "
            f"lost, {self.too_short} texts of at most {MIN_TOKENS} tokens left out"
        )


@dataclass(frozen=True)
class Pool:
    """What a calibration is taken from, and what it must not hold."""

    train: Sequence[Row]
    general: Sequence[Row]
    measured: Set[str]
    """Every text that models are measured on, evened out."""
    rules: Rules
    """How rows are rendered."""


def read_pool(data: Path) -> Pool:
    """Read what a dataset artifact offers."""
    return Pool(
        train=read_rows(data / TRAIN),
        general=read_rows(data / GENERAL),
        measured=measured_texts(data),
        rules=read_rules(data),
    )


def sample_calibration(
    tokenizer: Any, pool: Pool, rows: int, seed: int, general_share: float = 0.0
) -> Calibration:
    """Sample training conversations and general text that nobody measures on.

    A row is dropped when an answer of it, evened out, is an answer in heldout.jsonl or a value in
    an evaluation document, or shares `OVERLAP` of its runs of `NGRAM` words with them. Questions
    are not looked at: a system prompt that all rows share would drop all of them.

    Args:
        tokenizer: With the chat template of the model.
        pool: What is sampled.
        rows: At most this many are taken, both kinds together.
        seed: Of the order in which rows are tried.
        general_share: Share of `rows` that is general text, where there is enough.

    Raises:
        ContractError: If no row is left.
    """
    words = dialect(tokenizer, pool.rules)
    measured = Measured(pool.measured)
    reasons = dict.fromkeys(("measured", "repeated", "control"), 0)
    wanted = general_texts(pool, rows, general_share)
    pieces = _taken(pool.general, wanted, seed, words, measured, reasons)
    taken = _taken(pool.train, rows - len(pieces), seed, words, measured, reasons)
    if not taken:
        raise ContractError(
            f"calibration: all {len(pool.train)} training rows are also held out or evaluated on, "
            "or spell control tokens, so figures of the quantized model would mean nothing; give "
            "training and held-out files with different rows"
        )
    chosen = (
        *(pool.train[index] for index in taken),
        *(pool.general[index] for index in pieces),
    )
    return Calibration(
        texts=tuple(
            row["text"] if "text" in row else render(words, row["messages"], row) for row in chosen
        ),
        rows=tuple(taken),
        general=tuple(pieces),
        dropped=Dropped(**reasons),
        seed=seed,
    )


def general_texts(pool: Pool, rows: int, general_share: float) -> int:
    """Say how many of `rows` are to be general text, of which a pool may have less."""
    return min(round(rows * general_share), len(pool.general))


def encode_calibration(tokenizer: Any, texts: Sequence[str], max_length: int) -> Encoded:
    """Encode calibration texts, cut them, leave out what GPTQModel would, and count both.

    Raises:
        ContractError: If no text is long enough.
    """
    with naming_patterns(tokenizer, "calibration"):
        encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    usable = tuple(tuple(ids[:max_length]) for ids in encoded if len(ids) > MIN_TOKENS)
    if not usable:
        raise ContractError(
            f"calibration: none of {len(texts)} texts has more than {MIN_TOKENS} "
            "tokens; give longer conversations"
        )
    over = [len(ids) - max_length for ids in encoded if len(ids) > max_length]
    return Encoded(usable, len(over), sum(over), len(encoded) - len(usable))


def check_tokens(encoded: Encoded, floor: int, section: str) -> None:
    """Refuse a calibration from which GPTQ cannot know the layers' inputs.

    Args:
        encoded: The calibration.
        floor: Tokens it needs at least.
        section: Of the configuration, for the error.

    Raises:
        ConfigError: With the figure, what was expected and the way out.
    """
    if encoded.tokens >= floor:
        return
    raise ConfigError(
        f"{section}: {len(encoded.ids)} texts of calibration have {encoded.tokens} tokens, "
        f"expected at least {floor} ({section}.calibration_min_tokens): with fewer, some "
        f"inputs of a layer are never seen together; raise {section}.calibration_rows or "
        f"{section}.calibration_length, give prepare_data more rows, or lower the floor"
    )


def calibration_record(calibration: Calibration, encoded: Encoded) -> dict[str, Any]:
    """Say what to keep beside a model, so that its calibration can be repeated and checked."""
    lengths = sorted(map(len, encoded.ids))
    digest = hashlib.sha256("\0".join(calibration.texts).encode()).hexdigest()
    return {
        "seed": calibration.seed,
        "rows": list(calibration.rows),
        "general": list(calibration.general),
        "dropped": vars(calibration.dropped),
        "overlap": {"ngram": NGRAM, "share": OVERLAP},
        "texts": len(encoded.ids),
        "tokens": encoded.tokens,
        "lengths": {"least": lengths[0], "median": median(lengths), "most": lengths[-1]},
        "cut": encoded.cut,
        "lost_tokens": encoded.lost_tokens,
        "too_short": encoded.too_short,
        "sha256": digest,
    }


def calibration_metrics(calibration: Calibration, encoded: Encoded) -> dict[str, float]:
    """Flat figures for a stage's record."""
    dropped = calibration.dropped
    return {
        "calibration_rows": float(len(calibration.rows)),
        "calibration_general": float(len(calibration.general)),
        "calibration_tokens": float(encoded.tokens),
        "calibration_cut": float(encoded.cut),
        "calibration_lost_tokens": float(encoded.lost_tokens),
        "calibration_dropped": float(sum(vars(dropped).values())),
        "calibration_measured": float(dropped.measured),
    }


def _taken(
    rows: Sequence[Row],
    count: int,
    seed: int,
    words: Dialect,
    measured: Measured,
    reasons: dict[str, int],
) -> list[int]:
    """Choose rows in an order by the seed; count in `reasons` those that were passed over."""
    taken: list[int] = []
    seen: set[str] = set()
    for index in _shuffled(range(len(rows)), seed):
        if len(taken) >= count:
            break
        row, text = rows[index], normalised(rows[index])
        if measured.holds(answers(row)):
            reasons["measured"] += 1
        elif text in seen:
            reasons["repeated"] += 1
        elif check_control(words, row):
            reasons["control"] += 1
        else:
            taken.append(index)
            seen.add(text)
    return taken


def _shuffled(numbers: Iterable[int], seed: int) -> Iterator[int]:
    order = list(numbers)
    yield from random.Random(seed).sample(order, len(order))
