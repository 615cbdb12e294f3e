"""Zero points that every reader of GPTQ's format reads: from 1, as what is stored is z - 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def zero_points_from_one() -> Iterator[None]:
    """Give a group without negative weights the zero point 1 in place of 0, inside GPTQModel.

    Its range [0, max] then takes the codes 1 to 2**bits - 1, one step fewer: s' = s m / (m - 1),
    m = 2**bits - 1. A zero point of 0 would be read as 2**bits, see
    `requant.quantization.gptq_range`. Symmetric grids have none.
    """
    from gptqmodel.quantization.quantizer import Quantizer

    find_params = Quantizer.find_params

    def find(self: Any, x: Any, weight: bool = False) -> None:
        find_params(self, x, weight=weight)
        if self.qcfg.sym or self.requires_groupwise_processing():
            return
        steps = (1 << int(self.qcfg.bits)) - 1
        lifted = self.zero < 1
        self.scale[lifted] *= steps / (steps - 1)
        self.zero[lifted] = 1.0

    Quantizer.find_params = find
    try:
        yield
    finally:
        Quantizer.find_params = find_params
