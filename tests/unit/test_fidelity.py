"""Figures of two models' log-probabilities, and rounding to nearest, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from requant.comparison.divergence import Fidelity, compare_log_probs
from requant.quantization.fidelity import Quantization
from requant.quantization.quantizable import Unquantized
from requant.quantization.round_to_nearest import round_to_nearest
from requant.quantization.weight_errors import WeightErrors
from requant.statistics import Gain


def test_the_figures_of_two_distributions() -> None:
    """A hundred tokens of two words; the candidate is off on one of them."""
    even = torch.full((50, 2), math.log(0.5))
    off = even.clone()
    off[0] = torch.tensor([math.log(0.9), math.log(0.1)])
    labels = torch.ones(1, 51, dtype=torch.int64)
    batches = [(labels, labels)] * 2
    found = compare_log_probs([even, even], [off, even], batches).in_full()
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert found["kl"] == pytest.approx(kl / 100)
    # Linear between the 99th and the 100th of the sorted tokens: 0.99 * 99 = 98.01.
    assert found["kl_p99"] == pytest.approx(0.01 * kl, rel=1e-3)
    assert found["ln_ppl_ratio"] == pytest.approx(math.log(0.5 / 0.1) / 100, rel=1e-5)
    assert found["kl_error"] == pytest.approx(kl / 100)
    one = compare_log_probs([even], [off], batches[:1]).in_full()
    assert "kl_error" not in one


def fidelity(*kl: float) -> Fidelity:
    """Texts of ten tokens each, with their KL a token."""
    mean = sum(kl) / len(kl)
    return Fidelity(
        mean, 1.0, 1.0, 1.0, 10 * len(kl), texts=tuple((10 * each, 10.0) for each in kl)
    )


def test_calibration_is_held_to_plain_rounding_by_pairs_of_texts() -> None:
    weights, left = WeightErrors({}, 0.1, 1, 4.5), Unquantized({}, 1)
    nearest = fidelity(0.4, 0.8, 0.6)

    def measured(*kl: float) -> Quantization:
        return Quantization(fidelity(*kl), nearest, weights, left, 0.5)

    # Half of it on every text, whatever the texts: 0.5 shows no excess, 0.49 does.
    half = measured(0.2, 0.4, 0.3)
    assert half.rtn_ratio == pytest.approx(0.5)
    assert half.rtn_excess(0.5) == pytest.approx(0, abs=1e-12)
    assert half.rtn_excess(0.4) > 0 > half.rtn_excess(0.6)
    # More on one text, less on another: the mean is above, which three texts do not show.
    mixed = measured(0.9, 0.6, 0.5)
    assert mixed.rtn_ratio > 1
    assert mixed.rtn_excess(1.0) < 0
    assert Quantization(fidelity(0.5), fidelity(0.4), weights, left, 0.5).rtn_excess(
        1.0
    ) == pytest.approx(0.1)


def test_rounding_is_held_to_the_gain_by_pairs_of_texts() -> None:
    weights, left = WeightErrors({}, 0.1, 1, 4.5), Unquantized({}, 1)

    def measured(before: list[float], after: list[float], rounded: list[float]) -> Quantization:
        found = replace(
            fidelity(*([0.1] * len(after))), losses=tuple(zip(after, rounded, strict=True))
        )
        return Quantization(found, None, weights, left, 0.5, tuple(before))

    # Half of what was won on every text, whatever the texts won.
    half = measured([12, 12.2, 11.9], [10, 10, 10], [11, 11.1, 10.95])
    assert half.gain == pytest.approx(6.1 / 30)
    assert half.gain_excess(0.5) == pytest.approx(0, abs=1e-12)
    assert half.gain_excess(0.4) > 0 > half.gain_excess(0.6)
    # A loss on one text and none on the others is not shown by three texts.
    assert measured([12, 14, 11], [10, 10, 10], [20, 10, 10]).gain_excess(1.0) < 0
    # Who won nothing has nothing to lose, and without a base nothing is known.
    assert measured([9, 9, 9], [10, 10, 10], [20, 20, 20]).gain_excess(1.0) == -math.inf
    unknown = measured([], [10, 10, 10], [20, 20, 20])
    assert unknown.gain is None
    assert unknown.gain_excess(1.0) == -math.inf


def test_who_won_nothing_may_lose_nothing_and_one_text_is_judged_by_its_mean() -> None:
    behind = Gain((9.0, 9.0, 9.0), (10.0, 10.0, 10.0), (11.0, 11.0, 11.0), (1.0, 1.0, 1.0))
    assert behind.won < 0 < behind.excess(1.0) <= behind.lost
    single = Gain((3.0,), (1.0,), (2.0,), (2.0,))
    assert (single.won, single.lost) == (1.0, 0.5)
    assert single.excess(0.4) == pytest.approx(0.1)
    assert math.isnan(Gain((3.0, 3.0), (1.0, 1.0), (math.nan, 1.0), (1.0, 1.0)).excess(1.0))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_point_of_the_grid_is_nearer(bits: int, symmetric: bool) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[0] = weight[0].abs()
    weight[1] = 0.0
    found = round_to_nearest(weight, bits, 32, symmetric)
    assert not found[1].any()
    groups, rounded = weight.reshape(-1, 32), found.reshape(-1, 32)
    steps = 2**bits - 1
    for group, points in zip(groups, rounded, strict=True):
        low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
        wide = 2 * max(-low, high) if symmetric else high - low
        # Half a step, and what float16 makes of the scale at the outermost code.
        allowed = wide / steps / 2 + 2.0**-11 * wide
        assert float((group - points).abs().max()) <= allowed
        assert len(points.unique()) <= 2**bits
