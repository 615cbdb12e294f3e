"""Figures of two models' log-probabilities, and rounding to nearest, by hand."""

import math

import pytest
import torch

from requant.comparison.divergence import compare_log_probs
from requant.quantization.round_to_nearest import round_to_nearest


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
