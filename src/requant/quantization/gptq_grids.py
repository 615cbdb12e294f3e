"""Grids of GPTQModel: searched with both signs, and mended where a group's weights share theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requant.quantization.scales import symmetric_scales


@contextmanager
def mended_grids() -> Iterator[None]:
    """Take the scales of `symmetric_scales` where GPTQModel would search symmetric ones.

    Without a search, groups without negative weights get a grid that every reader reads and that
    holds them:

    asymmetric  z = 1 in place of 0, which readers take for 2**bits (`requant.quantization
                .gptq_range`): [0, max] in one step fewer, s' = s m / (m - 1), m = 2**bits - 1
    symmetric   s' = 2 s: GPTQModel scales to [0, max] and then puts zero into the middle, so that
                a 4-bit group of positive weights would be clipped at 7/15 of its largest
    """
    import torch
    from gptqmodel.quantization.quantizer import Quantizer

    find_params = Quantizer.find_params

    def find(self: Any, x: Any, weight: bool = False) -> None:
        power = float(getattr(self.qcfg, "mse", 0.0) or 0.0)
        if weight and power and self.qcfg.sym and self.perchannel:
            self.maxq = self.maxq.to(x.device)
            self.scale = symmetric_scales(x.flatten(1), self.qcfg.bits, power).unsqueeze(1)
            self.zero = torch.full_like(self.scale, 2 ** (self.qcfg.bits - 1))
            return
        find_params(self, x, weight=weight)
        if self.requires_groupwise_processing():
            return
        steps = (1 << int(self.qcfg.bits)) - 1
        if self.qcfg.sym:
            rows = x.flatten(1)
            largest = rows.amax(1).reshape(self.scale.shape)
            positive = (rows.amin(1) >= 0).reshape(self.scale.shape) & (largest > 0)
            # A scale that was found otherwise covers them already.
            clipping = positive & (self.scale.abs() * steps <= largest * 1.001)
            self.scale[clipping] *= 2
            return
        lifted = self.zero < 1
        self.scale[lifted] *= steps / (steps - 1)
        self.zero[lifted] = 1.0

    Quantizer.find_params = find
    try:
        yield
    finally:
        Quantizer.find_params = find_params
