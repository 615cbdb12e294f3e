"""Properties of the order in which a training sees its samples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.training.batching import padding_share, samples_to_see, training_order

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=60)


@given(lengths=LENGTHS, per_step=st.integers(1, 40), passes=st.integers(1, 4), seed=st.integers())
def test_every_pass_sees_every_sample_once(
    lengths: list[int], per_step: int, passes: int, seed: int
) -> None:
    total = samples_to_see(len(lengths), per_step, steps=None, epochs=passes)

    order = training_order(lengths, per_step, total, seed)

    assert Counter(order) == dict.fromkeys(range(len(lengths)), passes)
    for start in range(0, total, len(lengths)):
        assert set(order[start : start + len(lengths)]) == set(range(len(lengths)))


@pytest.mark.parametrize(
    ("rows", "per_step", "epochs", "seen"),
    [(3, 8, 10, 30), (9, 8, 4, 36), (10, 8, 1, 10), (10, 8, 0.5, 5), (3, 8, 0.01, 1)],
)
def test_epochs_are_passes_whatever_the_batch(
    rows: int, per_step: int, epochs: float, seen: int
) -> None:
    assert samples_to_see(rows, per_step, steps=None, epochs=epochs) == seen


@given(lengths=LENGTHS, per_step=st.integers(1, 40), steps=st.integers(1, 20))
def test_steps_are_full_and_the_first_one_holds_the_longest_sample(
    lengths: list[int], per_step: int, steps: int
) -> None:
    total = samples_to_see(len(lengths), per_step, steps=steps, epochs=None)

    order = training_order(lengths, per_step, total, seed=0)

    assert len(order) == steps * per_step
    assert max(lengths) in {lengths[index] for index in order[:per_step]}


def test_grouping_leaves_little_padding_and_the_seed_decides_the_order() -> None:
    lengths = [10 + 37 * index % 190 for index in range(800)]
    order = training_order(lengths, 8, 800, seed=0)

    assert padding_share(lengths, range(800), 8) > 0.2
    assert padding_share(lengths, order, 8) < 0.02
    assert order == training_order(lengths, 8, 800, seed=0)
    assert order != training_order(lengths, 8, 800, seed=1)
