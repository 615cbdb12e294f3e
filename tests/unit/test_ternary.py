"""Ternary updates of codes, on small tensors: packed and read again, moved and moved back."""

import numpy as np
import pytest
import torch

from requant.quantization.gptq_layout import unpacked
from requant.quantization.ternary import (
    clamped,
    doubtful,
    moved,
    moved_back,
    packed_codes,
    packed_flags,
    packed_trits,
    steps_of,
    unpacked_flags,
    unpacked_trits,
)
from tests.support.gptq_layout import codes_of


def draw(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_packed_as_two_readers_read_them(bits: int) -> None:
    codes = draw(0, 2**bits - 1, 5, 96)
    words = packed_codes(codes, bits)
    assert words.dtype == torch.int32
    assert torch.equal(unpacked(words, bits).long(), codes)
    assert np.array_equal(codes_of(words.numpy(), bits), codes.numpy())


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 243])
def test_ternary_numbers_and_flags_are_packed_and_read_again(count: int) -> None:
    numbers = draw(-1, 1, count)
    octets = packed_trits(numbers)
    assert len(octets) == -(-count // 5)
    assert torch.equal(unpacked_trits(octets, count).long(), numbers)
    flags = draw(0, 1, count).bool()
    assert len(packed_flags(flags)) == -(-count // 8)
    assert torch.equal(unpacked_flags(packed_flags(flags), count), flags)


def test_a_code_moves_where_the_product_is_beyond_the_threshold() -> None:
    a = torch.tensor([[1.0, 1, 1], [1, 1, 0], [-1, -1, -1], [1, -1, 1]])
    b = torch.tensor([[1.0, -1], [1, -1], [1, -1]])
    assert steps_of(a, b, 2).tolist() == [[1, -1], [0, 0], [-1, 1], [0, 0]]
    assert steps_of(a, b, 1).tolist() == [[1, -1], [1, -1], [-1, 1], [0, 0]]


@pytest.mark.parametrize("bits", [2, 4])
def test_what_was_moved_moves_back_also_from_the_ends(bits: int) -> None:
    largest = 2**bits - 1
    codes, steps = draw(0, largest, 64, 48), draw(-1, 1, 64, 48)
    after = moved(codes, steps, largest)
    lost = clamped(codes, steps, largest)
    assert int(lost.sum()) > 20
    assert torch.equal(lost, ((codes == 0) & (steps < 0)) | ((codes == largest) & (steps > 0)))
    doubt = doubtful(after, steps, largest)
    # All that is kept of the base: a bit for each code that does not tell itself.
    assert bool((doubt | ~lost).all())
    assert int(doubt.sum()) < codes.numel() / 2
    stayed = torch.zeros_like(doubt)
    stayed[doubt] = lost[doubt]
    assert torch.equal(moved_back(after, steps, stayed).long(), codes)
    assert not torch.equal(moved_back(after, steps, torch.zeros_like(doubt)).long(), codes)
