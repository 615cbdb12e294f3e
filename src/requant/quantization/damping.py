"""Hessians that are not positive definite: each damping that GPTQModel tries is said."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requant.execution.stage import Reporter


@contextmanager
def said_damping(reporter: Reporter) -> Iterator[None]:
    """Say which dampings were tried for a layer, where the first was not enough."""
    import torch
    from gptqmodel.quantization import GPTQ

    # Workers invert Hessians at once.
    running = threading.local()
    hessian_inverse: Any = GPTQ.hessian_inverse
    cholesky: Any = torch.linalg.cholesky_ex

    def recorded(matrix: Any, *arguments: Any, **options: Any) -> Any:
        result = cholesky(matrix, *arguments, **options)
        if (tries := getattr(running, "tries", None)) is not None:
            # GPTQModel adds to the diagonal in place.
            added = max(0.0, float(matrix.diagonal().mean()) / running.mean - 1)
            tries.append((added, not int(result.info)))
        return result

    def said(self: Any, matrix: Any) -> Any:
        tries: list[tuple[float, bool]] = []
        running.mean, running.tries = float(matrix.diagonal().mean()) or 1.0, tries
        try:
            return hessian_inverse(self, matrix)
        finally:
            running.tries = None
            if not all(ok for _, ok in tries):
                layer = self._named_module
                name = f"block {layer.layer_index} {layer.name}"
                words = (f"{added:.3g} {'ok' if ok else 'failed'}" for added, ok in tries)
                reporter.message(
                    f"{name}: Hessian is not positive definite; damping {', '.join(words)}"
                )

    GPTQ.hessian_inverse = said
    torch.linalg.cholesky_ex = recorded
    try:
        yield
    finally:
        GPTQ.hessian_inverse = hessian_inverse
        torch.linalg.cholesky_ex = cholesky
