"""The part of a stored tensor that one process keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows and columns of a tensor, or other values in their place.

    Args:
        rows: The indices kept of the first dimension, ascending, int64; None keeps all.
        cols: Likewise of the second dimension.
        value: What is kept in the place of the tensor, for instance the index of a part of a block-sparse matrix.
        zero: Whether zeros are kept in the place of its values.
    """

    rows: Tensor | None = None
    cols: Tensor | None = None
    value: Tensor | None = None
    zero: bool = False

    def shape_of(self, whole: Sequence[int]) -> list[int]:
        """Its shape, if the tensor has the shape `whole`."""
        if self.value is not None:
            return list(self.value.shape)
        shape = list(whole)
        for side, kept in enumerate((self.rows, self.cols)):
            if kept is not None:
                shape[side] = kept.numel()
        return shape

    def equals(self, other: Part | None) -> bool:
        """Whether both keep the same of one tensor."""
        if other is None or self.zero != other.zero:
            return False
        pairs = ((self.rows, other.rows), (self.cols, other.cols), (self.value, other.value))
        return all(
            a is b or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs
        )
