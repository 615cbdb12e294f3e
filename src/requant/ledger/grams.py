"""Runs of 13 words that a training row must not share with text that models are measured on.

Thirteen words are GPT-3's measure (Brown et al. 2020, appendix C): texts hardly share so many
unless one was copied. What is measured is the assistant's part of a held-out row, and plain text;
what may not repeat it is all of a training row but its system prompt, since an answer is also
learned from where it is quoted. Every row has one more run, of all its words, question and answer:
so a row whose answers have fewer than 13 words is contaminated by its equal, and "Yes." by nothing.

A run that more than `COMMON` measured texts hold is a phrase ("as a language model I cannot ..."),
not an answer, and contaminates nothing; GPT-3 leaves those out as well.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from requant.data.formats import Row
from requant.ledger.keys import content_keys
from requant.ledger.words import (
    Flags,
    Keys,
    Lists,
    Words,
    runs,
    whole_runs,
    with_one_more,
    words_of,
)

GRAM = 13
COMMON = 10


def grams(words: Words, contents: Keys) -> Lists:
    """Hash every run of 13 words of each row, message by message, and the row as one run."""
    by_message = runs(words.messages, GRAM)
    by_row = Lists(by_message.values, by_message.starts[words.firsts])
    every = np.ones(len(contents), bool)
    return with_one_more(by_row, whole_runs(words.rows, contents), every)


def measured_grams(rows: Sequence[Row]) -> Keys:
    """Hash the runs of held-out rows that no training row may hold.

    Returns:
        uint64 [runs], sorted; a run stands there once for each row that holds it.
    """
    words, contents = words_of(rows), content_keys(rows)
    by_message = runs(words.messages, GRAM)
    answers = by_message.values[words.answers[by_message.owners]]
    row_of_message = np.repeat(np.arange(len(rows)), np.diff(words.firsts))
    owners = row_of_message[by_message.owners][words.answers[by_message.owners]]
    values = np.concatenate([answers, whole_runs(words.rows, contents)])
    return _once_a_text(values, np.concatenate([owners, np.arange(len(rows))]))


def measured_texts(texts: Iterable[str]) -> Keys:
    """Hash the runs of an evaluation's texts, such as `requant.data.overlap.texts_of` finds.

    Returns:
        uint64 [runs], sorted, as `measured_grams`.
    """
    rows = [{"text": text} for text in sorted(set(texts))]
    return measured_grams(rows)


def counted(keys: Keys, measured: Keys) -> npt.NDArray[np.int64]:
    """Count for each key the measured texts that hold its run.

    Args:
        keys: In any order.
        measured: Sorted; a run as often as there are texts that hold it.
    """
    return np.searchsorted(measured, keys, "right") - np.searchsorted(measured, keys)


def telling(counts: npt.NDArray[np.int64]) -> Flags:
    """Tell which runs betray measured text: those of one, and not of so many that it is a phrase.

    Args:
        counts: Of texts that hold a run; those above `COMMON` need not be exact.
    """
    return (counts > 0) & (counts <= COMMON)


def _once_a_text(values: Keys, owners: npt.NDArray[np.int64]) -> Keys:
    order = np.lexsort((values, owners))
    values, owners = values[order], owners[order]
    again = np.zeros(len(values), bool)
    again[1:] = (values[1:] == values[:-1]) & (owners[1:] == owners[:-1])
    return np.sort(values[~again])
