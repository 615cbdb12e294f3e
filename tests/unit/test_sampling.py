"""Tokens are drawn as often as the model finds them likely, of the nucleus alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from requant.models.sampling import LIKELIEST, Sampling, draw

PROBABILITIES = torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1])
EVENLY = [(place + 0.5) / 1000 for place in range(1000)]
"""Numbers of a thousand rows that leave no gap: shares come out exact."""


def shares(sampling: Sampling, probabilities: torch.Tensor = PROBABILITIES) -> torch.Tensor:
    """Share of each token in a thousand draws."""
    logits = probabilities.log().expand(len(EVENLY), -1)
    return draw(logits, EVENLY, sampling).bincount(minlength=len(probabilities)) / len(EVENLY)


def test_each_token_is_drawn_as_often_as_it_is_likely() -> None:
    assert shares(Sampling(1)).tolist() == pytest.approx(PROBABILITIES.tolist(), abs=0.0011)


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        wanted = PROBABILITIES ** (1 / temperature)
        found = shares(Sampling(1, temperature=temperature)).tolist()
        assert found == pytest.approx((wanted / wanted.sum()).tolist(), abs=0.0011)
    assert shares(Sampling(1, temperature=1e-3)).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("top_p", "inside"), [(0.01, [1]), (0.4, [1]), (0.5, [1, 3]), (0.85, [1, 2, 3]), (1.0, None)]
)
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(
    top_p: float, inside: list[int] | None
) -> None:
    found = shares(Sampling(1, top_p=top_p))
    wanted = PROBABILITIES.clone()
    if inside is not None:
        wanted[[token for token in range(5) if token not in inside]] = 0
    assert found.tolist() == pytest.approx((wanted / wanted.sum()).tolist(), abs=0.0011)


@given(
    st.integers(0, 999),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([5, LIKELIEST, 4 * LIKELIEST]),
)
def test_sorting_the_likeliest_alone_changes_no_draw(
    seed: int, number: float, top_p: float, vocabulary: int
) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    token = draw(logits, [number], Sampling(1, top_p=top_p))[0]
    values, order = logits.double().softmax(-1)[0].sort(descending=True)
    before = values.cumsum(0) - values
    mass = values[before < top_p - 1e-6].sum()
    place = (order == token).nonzero().item()
    # The token covers the number's point of the nucleus.
    point = number * float(mass)
    assert float(before[place]) - 1e-4 <= point <= float(before[place] + values[place]) + 1e-4


def test_rows_are_drawn_apart() -> None:
    logits = PROBABILITIES.log().expand(3, -1)
    numbers = [0.1, 0.6, 0.99]
    together = draw(logits, numbers, Sampling(1)).tolist()
    assert together == [draw(logits[:1], [number], Sampling(1)).item() for number in numbers]
