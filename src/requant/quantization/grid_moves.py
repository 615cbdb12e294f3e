"""Codes of a GPTQ folder moved by ternary updates, and moved back: in the files, byte for byte.

Nothing of a file but the codes is written, so that moving back gives the very file.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ContractError
from requant.models.headers import TensorHeader, read_headers, weight_files
from requant.quantization.dequantize import load_tensor
from requant.quantization.gptq_layout import unpacked
from requant.quantization.ternary import (
    TRITS,
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

if TYPE_CHECKING:
    import torch

    Codes = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Moves:
    """The ternary update of a model's layers, packed."""

    bits: int
    """Of a code."""
    rank: int
    omega: int
    """See `requant.quantization.ternary`."""
    modules: tuple[str, ...]
    """Layers by their names in the files, in the order of the numbers."""
    numbers: "torch.Tensor"
    """uint8: of each layer A [in, rank], then B [rank, out], five to a byte."""
    stayed: "torch.Tensor"
    """uint8: of each layer a bit for each doubtful code, whether it was clamped; empty before the
    base is known."""

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def steps(self, headers: Mapping[str, TensorHeader]) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield each layer and which way its codes are pushed, int8 [in, out].

        Raises:
            ContractError: As `numbers_of`.
        """
        for module, (a, b) in self.numbers_of(headers):
            yield module, steps_of(a, b, self.omega)

    def numbers_of(
        self, headers: Mapping[str, TensorHeader]
    ) -> "Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]":
        """Yield each layer with A [in, rank] and B [rank, out] in float32.

        Raises:
            ContractError: If a model has no such layer, or layers of other sizes.
        """
        place = 0
        for module in self.modules:
            weight, inputs = headers.get(f"{module}.qweight"), headers.get(f"{module}.g_idx")
            if weight is None or inputs is None:
                raise ContractError(f"delta: moves {module}, which the model lacks")
            sizes = [inputs.shape[0] * self.rank, self.rank * weight.shape[1]]
            ends = [place + -(-size // TRITS) for size in sizes]
            ends[1] += ends[0] - place
            if ends[1] > len(self.numbers):
                raise ContractError(f"delta: has too few numbers for {module}; copy it anew")
            a = unpacked_trits(self.numbers[place : ends[0]], sizes[0])
            b = unpacked_trits(self.numbers[ends[0] : ends[1]], sizes[1])
            place = ends[1]
            yield module, (a.view(-1, self.rank).float(), b.view(self.rank, -1).float())
        if place != len(self.numbers):
            raise ContractError("delta: has numbers that no layer takes; copy it anew")


@dataclass(frozen=True)
class Counts:
    """What a move did to the codes."""

    weights: int
    """In the layers that are moved."""
    changed: int
    clamped: int
    """Weights that were pushed out of the range, and stayed."""


def packed_updates(
    updates: "Mapping[str, tuple[torch.Tensor, torch.Tensor]]", bits: int, omega: int
) -> Moves:
    """Pack updates of layers.

    Args:
        updates: Layer to A [in, rank] and B [rank, out] of -1, 0 and 1, of one rank.
        bits: Of a code.
        omega: See `requant.quantization.ternary`.
    """
    import torch

    packed = [packed_trits(part) for pair in updates.values() for part in pair]
    rank = next(iter(updates.values()))[0].shape[1]
    nothing = torch.zeros(0, dtype=torch.uint8)
    return Moves(bits, rank, omega, tuple(updates), torch.cat(packed), nothing)


def move(base: Path, out: Path, moves: Moves) -> "tuple[Counts, torch.Tensor]":
    """Write the weights of `base` with their codes moved.

    Args:
        base: GPTQ folder.
        out: Existing folder; gets the files of weights.
        moves: Without `stayed`, or with.

    Returns:
        What came of it, and `Moves.stayed`.

    Raises:
        ContractError: As `Moves.steps`.
    """
    import torch

    weights = changed = lost = 0
    flags: list[torch.Tensor] = []
    headers = read_headers(base)
    _copy_weights(base, out)
    for module, steps in moves.steps(headers):
        before = _codes(module, headers, moves.bits)
        after = moved(before[: len(steps)], steps, moves.largest)
        out_of = clamped(before[: len(steps)], steps, moves.largest)
        flags.append(out_of[doubtful(after, steps, moves.largest)])
        _write_codes(module, headers, out, before, after, moves.bits)
        weights += steps.numel()
        changed += int((after != before[: len(steps)]).sum())
        lost += int(out_of.sum())
    return Counts(weights, changed, lost), packed_flags(torch.cat(flags))


def move_back(model: Path, out: Path, moves: Moves) -> None:
    """Write the weights of `model` with their codes as they were before the move.

    Args:
        model: GPTQ folder that `move` wrote.
        out: Existing folder; gets the files of weights.
        moves: With `stayed`.

    Raises:
        ContractError: As `Moves.steps`, or if `stayed` belongs to another model.
    """
    import torch

    headers = read_headers(model)
    _copy_weights(model, out)
    flags = unpacked_flags(moves.stayed, 8 * len(moves.stayed))
    place = 0
    for module, steps in moves.steps(headers):
        after = _codes(module, headers, moves.bits)
        doubt = doubtful(after[: len(steps)], steps, moves.largest)
        count = int(doubt.sum())
        if place + count > len(flags):
            raise ContractError(f"delta: does not say which weights of {module} were clamped")
        stayed = torch.zeros_like(doubt)
        stayed[doubt] = flags[place : place + count]
        place += count
        before = moved_back(after[: len(steps)], steps, stayed)
        _write_codes(module, headers, out, after, before, moves.bits)


def _copy_weights(source: Path, out: Path) -> None:
    for path in weight_files(source):
        shutil.copyfile(path, out / path.name)


def _codes(module: str, headers: Mapping[str, TensorHeader], bits: int) -> "torch.Tensor":
    """Return a layer's codes [in, out]; more rows where the words hold more numbers."""
    return unpacked(load_tensor(f"{module}.qweight", headers).T, bits).T


def _write_codes(
    module: str,
    headers: Mapping[str, TensorHeader],
    out: Path,
    stored: "torch.Tensor",
    codes: "torch.Tensor",
    bits: int,
) -> None:
    """Write a layer's codes over those in the copy of its file."""
    import torch

    header = headers[f"{module}.qweight"]
    whole = torch.cat([codes, stored[len(codes) :].to(codes.dtype)])
    words = packed_codes(whole.T, bits).T.contiguous()
    with (out / header.file.name).open("r+b") as file:
        file.seek(header.start)
        file.write(words.numpy().tobytes())


def bytes_of_numbers(layers: Sequence[str], headers: Mapping[str, TensorHeader], rank: int) -> int:
    """Return what the numbers of an update take; what says which codes stayed comes on top."""
    sizes = [(headers[f"{name}.g_idx"], headers[f"{name}.qweight"]) for name in layers]
    parts = [rank * size for g_idx, weight in sizes for size in (g_idx.shape[0], weight.shape[1])]
    return sum(-(-part // TRITS) for part in parts)


def layers_moved(headers: Mapping[str, TensorHeader], targets: Sequence[str]) -> list[str]:
    """List the quantized layers of the last names that are moved, sorted."""
    found = (name.removesuffix(".qweight") for name in headers if name.endswith(".qweight"))
    return sorted(name for name in found if name.rpartition(".")[2] in targets)
