"""Whether two ways to compute one output agree up to rounding, on random input and without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Largest ‖found − expected‖ / ‖expected‖ by dtype: both round in the same places, but sum in a different order.
SAME = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two outputs are equal up to rounding.

    Args:
        found: One output.
        expected: The other, of the same shape.
        dtype: The dtype they were computed in.
    """
    found, expected = found.double(), expected.double()
    return bool((found - expected).norm() <= SAME.get(dtype, 1e-4) * expected.norm())


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Context without dropout and without gradients; each part has its training flag back at the end."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
