"""The shape of an operator's output."""

from __future__ import annotations

import torch
from torch import Tensor


def unflatten(rows: Tensor, x: Tensor) -> Tensor:
    """Output rows `[tokens, out]` in the leading dimensions of `x`: `[..., out]`, without a copy.

    The result is no view for autograd: it refuses to change a view that an operator returns in place, as `relu_` does.
    """
    return torch.ops.aten._unsafe_view.default(rows, [*x.shape[:-1], rows.shape[-1]])
