"""Ternary updates of integer codes (LoTA-QAF, arXiv:2505.18724): an update that stays on the grid.

dW = A B with A in {-1, 0, 1}^{in x r} and B in {-1, 0, 1}^{r x out} is an integer in [-r, r]; a
code moves one step in its direction where it is beyond a threshold omega:

    W' = clamp(W + sign(dW) [|dW| > omega], 0, 2^bits - 1)

Scales and zero points stay. The paper moves the zero points too, by the part of dW that no code
takes, a float; GPTQ's format stores zero points as integers of `bits` bits, so that part is left
out here.

What clamping did is all that W' does not tell of W: a weight that now lies at an end of the range,
and was pushed towards it, lay there already or one step before. One bit for each of those weights,
in their order, makes the update reversible.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TRITS = 5
"""Ternary digits in a byte: 3^5 = 243."""


def steps_of(a: "torch.Tensor", b: "torch.Tensor", omega: int) -> "torch.Tensor":
    """Return which way each code is pushed.

    Args:
        a: Of -1, 0 and 1, float [in, r]: products of floats are fast, and these are exact.
        b: Likewise [r, out].
        omega: Threshold, 0 to r - 1.

    Returns:
        int8 [in, out] of -1, 0 and 1.
    """
    import torch

    product = a @ b
    return (product > omega).to(torch.int8) - (product < -omega).to(torch.int8)


def moved(codes: "torch.Tensor", steps: "torch.Tensor", largest: int) -> "torch.Tensor":
    """Return the codes after their steps, within 0 and `largest`; int16 [in, out].

    Args:
        codes: Integers [in, out].
        steps: From `steps_of`.
        largest: 2^bits - 1.
    """
    return (codes.short() + steps.short()).clamp(0, largest)


def clamped(codes: "torch.Tensor", steps: "torch.Tensor", largest: int) -> "torch.Tensor":
    """Return which steps would leave the range, and are not taken; bool [in, out]."""
    wanted = codes.short() + steps.short()
    return (wanted < 0) | (wanted > largest)


def doubtful(after: "torch.Tensor", steps: "torch.Tensor", largest: int) -> "torch.Tensor":
    """Return which codes alone do not tell whether they were clamped; bool [in, out].

    Args:
        after: Codes after the steps, from `moved`.
        steps: From `steps_of`.
        largest: 2^bits - 1.
    """
    return ((after == 0) & (steps < 0)) | ((after == largest) & (steps > 0))


def moved_back(
    after: "torch.Tensor", steps: "torch.Tensor", stayed: "torch.Tensor"
) -> "torch.Tensor":
    """Return the codes before their steps; int16 [in, out].

    Args:
        after: Codes after the steps.
        steps: From `steps_of`.
        stayed: bool [in, out], from `clamped`.
    """
    return after.short() - steps.short() * ~stayed


def packed_codes(codes: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Pack numbers along the last dimension: what `gptq_layout.unpacked` reads.

    Args:
        codes: Integers [..., words * 32 // bits], each 0 to 2**bits - 1.
        bits: Of a number.

    Returns:
        int32 [..., words].
    """
    import torch

    # A word of its own bits, which 3-bit numbers straddle.
    stream = (codes.to(torch.uint8).unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8)) & 1
    words = stream.flatten(-2).unflatten(-1, (-1, 4, 8))
    octets = (words << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return octets.contiguous().view(torch.int32).squeeze(-1)


def packed_trits(numbers: "torch.Tensor") -> "torch.Tensor":
    """Pack numbers of -1, 0 and 1 five to a byte; uint8 [ceil(n / 5)].

    Args:
        numbers: Of any shape; read in their order.
    """
    import torch

    digits = numbers.flatten().to(torch.int16) + 1
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % TRITS))
    places = 3 ** torch.arange(TRITS, dtype=torch.int16)
    return (digits.view(-1, TRITS) * places).sum(1).to(torch.uint8)


def unpacked_trits(octets: "torch.Tensor", count: int) -> "torch.Tensor":
    """Read `count` numbers of -1, 0 and 1; int8 [count]."""
    import torch

    places = 3 ** torch.arange(TRITS, dtype=torch.int16)
    digits = (octets.short().unsqueeze(1) // places) % 3
    return (digits.flatten()[:count] - 1).to(torch.int8)


def packed_flags(flags: "torch.Tensor") -> "torch.Tensor":
    """Pack booleans eight to a byte, the lowest bit first; uint8 [ceil(n / 8)]."""
    import torch

    bits = torch.nn.functional.pad(flags.flatten().to(torch.uint8), (0, -flags.numel() % 8))
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked_flags(octets: "torch.Tensor", count: int) -> "torch.Tensor":
    """Read `count` booleans; bool [count]."""
    import torch

    bits = (octets.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:count].bool()
