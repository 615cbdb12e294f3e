"""Near-duplicates: rows that say almost the same, found by MinHash without comparing every pair.

Two rows are near-duplicates when the sets of their runs of three words, question and answer
together, are alike by a Jaccard index of at least the threshold (0.8): a word in thirty changed,
a sentence in ten added. A row of fewer words is one run, so that two short rows are
near-duplicates only when they differ in nothing but case and punctuation. Runs of five words, as
web pages are compared by, would let a row of 45 words pass that differs in one; single words
would take every "What is 12 + 30?" for the same.

`rensa.RMinHash` (Fast Similarity Sketching, Dahlgaard et al. 2017, arxiv.org/abs/1704.04370) gives
each row 128 numbers, of which two rows share as many as their Jaccard index says. Rows that are
equal in all numbers of one band are candidates; of each number eight bits are kept to judge
candidates by (b-bit minwise hashing, Li & König 2010): 128 bytes a row instead of 512.

Measured on docstrings of the standard library (requant.corpus), words of which were changed,
removed and added until the pair had the index, 1,500 pairs each; threshold 0.8:

| Jaccard index                 | 0.6  | 0.7  | 0.75 | 0.8  | 0.85 | 0.9  | 0.95 |
|-------------------------------|------|------|------|------|------|------|------|
| some band is shared           | 27 % | 65 % | 85 % | 95 % | 99 % | all  | all  |
| found to be a near-duplicate  | none | none | 4 %  | 46 % | 97 % | all  | all  |
| error of the estimate (s. d.) | .033 | .032 | .029 | .027 | .025 | .021 | .015 |

Of the 242 pairs of 0.8 and more among 6,426 docstrings as they are 94 % are found; of what is found
96 % have 0.8, and all 0.75.
"""

import math
import unicodedata
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.errors import ConfigError
from requant.ledger.grams import COMMON, GRAM
from requant.ledger.words import (
    BASE,
    MIX,
    Keys,
    Lists,
    Words,
    mixed,
    runs,
    whole_runs,
    with_one_more,
)

PERMUTATIONS = 128
SEED = 1
SHINGLE = 3
LEAST_BANDS = 0.99
RECALL = 0.95
"""Share of pairs with an index of just the threshold that some band must bring together."""
Signatures = npt.NDArray[np.uint8]
Estimates = npt.NDArray[np.float32]


def algorithm(threshold: float) -> dict[str, Any]:
    """Name all that decides the keys: rows are comparable only if it is equal."""
    from rensa import RMinHash

    count, size = bands(threshold)
    return {
        "minhash": f"rensa RMinHash {RMinHash.ALGORITHM_VERSION}",
        "permutations": PERMUTATIONS,
        "seed": SEED,
        "shingle": SHINGLE,
        "threshold": threshold,
        "bands": count,
        "band_size": size,
        "gram": GRAM,
        "common": COMMON,
        "words": f"xxh3_64, {BASE:x} {MIX[0]:x} {MIX[1]:x}, Unicode {unicodedata.unidata_version}",
        "contents": "blake2b, 128 bits; occurrences 64",
    }


def key_threshold(near_duplicates: float | None) -> float:
    """Return the threshold by which rows are keyed; where none is dropped, that of fewest keys."""
    return LEAST_BANDS if near_duplicates is None else near_duplicates


@cache
def bands(threshold: float) -> tuple[int, int]:
    """Choose how many bands of how many numbers each bring near-duplicates together.

    P(candidate) = 1 - (1 - J**size)**count. The longest bands are taken of which 128 numbers make
    enough, and no more of them than `RECALL` at the threshold needs: long bands bring few strangers
    together, and each band is a key on disk. 0.8: 13 bands of 7.

    Raises:
        ConfigError: If the threshold is not from 0.5 to 0.99.
    """
    if not 0.5 <= threshold <= 0.99:
        raise ConfigError(
            f"the threshold of near-duplicates is {threshold}; expected 0.5 to 0.99: lower, all "
            "rows of one template are near-duplicates; higher, it cannot be told by an estimate"
        )
    size, count = PERMUTATIONS, PERMUTATIONS
    while count * size > PERMUTATIONS:
        size -= 1
        count = math.ceil(math.log(1 - RECALL) / math.log1p(-(threshold**size)))
    return count, size


def sketched(words: Words, contents: Keys, threshold: float) -> tuple[Keys, Signatures]:
    """Compute what rows are compared by.

    Returns:
        Band keys, uint64 [rows, bands], and signatures, uint8 [rows, 128].
    """
    minima = _minima(_shingles(words.rows, contents))
    count, size = bands(threshold)
    keys = np.empty((len(minima), count), np.uint64)
    for band in range(count):
        key: Keys = np.full(len(minima), band, np.uint64)
        for column in range(band * size, (band + 1) * size):
            key = mixed(key * np.uint64(BASE) + minima[:, column])
        keys[:, band] = key
    return keys, minima.astype(np.uint8)


def similarity(left: Signatures, right: Signatures) -> Estimates:
    """Estimate the Jaccard index of pairs of rows, within 0.03 (standard deviation) at 0.8.

    J = (m - 1/256) / (1 - 1/256), m the share of equal bytes: unequal numbers share their last
    byte once in 256.

    Args:
        left: uint8 [pairs, 128].
        right: uint8 [pairs, 128], or one row of them.
    """
    chance = 1 / 256
    equal = (left == right).mean(axis=1)
    estimates: Estimates = np.maximum((equal - chance) / (1 - chance), 0).astype(np.float32)
    return estimates


def _shingles(words: Lists, contents: Keys) -> Lists:
    return with_one_more(runs(words, SHINGLE), whole_runs(words, contents), words.sizes < SHINGLE)


def _minima(shingles: Lists) -> npt.NDArray[np.uint32]:
    from rensa import RMinHash

    found = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.values, shingles.starts.astype(np.uint64), PERMUTATIONS, SEED
    )
    return np.array(found.to_rows(), np.uint32).reshape(-1, PERMUTATIONS)
