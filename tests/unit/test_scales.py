"""The search of symmetric scales, against every scale of a fine grid."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from requant.quantization.scales import symmetric_scales  # noqa: E402


def error(weights: Any, scale: Any, bits: int, power: float) -> Any:
    codes = 2 ** (bits - 1)
    step = scale.unsqueeze(1)
    rounded = torch.round(weights / step).clamp(-codes, codes - 1) * step
    return (rounded - weights).abs().pow(power).sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_scale_of_a_fine_grid_is_much_better(bits: int) -> None:
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(bits))
    found = error(weights, symmetric_scales(weights, bits, 2.0), bits, 2.0)
    reach = weights.abs().amax(1) / 2 ** (bits - 1)
    every = [error(weights, s * reach, bits, 2.0) for s in torch.linspace(0.4, 1.1, 141)]
    every += [error(weights, -s * reach, bits, 2.0) for s in torch.linspace(0.4, 1.1, 141)]
    least = torch.stack(every).amin(0)
    # At 8 bit every scale errs by another sample of the same rounding noise.
    assert found.sum() < (1.2 if bits == 8 else 1.03) * least.sum()


def test_the_side_with_one_code_more_lies_where_the_largest_weight_is() -> None:
    # 4 bit: codes -8 to 7. 8 is reached by a negative scale alone, and then exactly.
    weights = torch.tensor([[8.0, -7.0, 3.0, 1.0], [-8.0, 7.0, 3.0, 1.0]])
    assert symmetric_scales(weights, 4, 2.0).tolist() == [-1.0, 1.0]


def test_zeros_have_a_scale_and_nan_stays_to_be_refused() -> None:
    scales = symmetric_scales(torch.tensor([[0.0, 0.0], [float("nan"), 1.0]]), 4, 2.0)
    assert scales[0] != 0
    assert scales[1].isnan()
