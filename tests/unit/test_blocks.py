"""GGUF's blocks hold given integers: read by the package that llama.cpp keeps."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from requant.errors import ContractError
from requant.exporting.blocks import KINDS, block_kind, packed
from requant.exporting.codes import Codes


def codes_of(low: int, high: int, width: int = 64, points: int = 3) -> Codes:
    """Codes of 6 rows and 4 groups that lie `low` to `high` steps from zero, both taken."""
    steps = torch.randint(low, high + 1, (6, 4 * width), generator=torch.Generator().manual_seed(0))
    steps[0, 0], steps[5, -1] = low, high
    zeros = torch.full((6, 4), points)
    scales = torch.linspace(-1, 1, 24, dtype=torch.float16).reshape(6, 4)
    return Codes((steps + points).to(torch.int16), zeros.to(torch.int16), scales)


@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (-8, 7, "Q4_0"),
        (-4, 3, "Q4_0"),
        (-9, 7, "Q5_0"),
        (-8, 8, "Q5_0"),
        (-16, 15, "Q5_0"),
        (-17, 0, "Q8_0"),
        (-128, 127, "Q8_0"),
    ],
)
def test_the_smallest_block_that_holds_all_is_taken_and_holds_all(
    low: int, high: int, kind: str, width: int
) -> None:
    codes = codes_of(low, high, width)
    assert block_kind("module", codes) == kind
    read = dequantize(packed(codes, kind), GGMLQuantizationType[kind])
    assert np.array_equal(read, codes.weight.numpy())
    assert codes.weight.abs().max() > 0


def test_integers_too_large_and_groups_too_small_are_refused() -> None:
    assert max(KINDS.values()) == 8
    with pytest.raises(
        ContractError,
        match="module: its weights lie -128 to 128 steps from zero; GGUF's largest integers are "
        "-128 to 127: quantize with symmetric=true",
    ):
        block_kind("module", codes_of(-128, 128))
    with pytest.raises(
        ContractError,
        match="module: its groups are of 16 weights; GGUF's blocks of 32 have one scale each: "
        "quantize with a group_size that is a multiple of 32",
    ):
        block_kind("module", codes_of(-8, 7, width=16))
