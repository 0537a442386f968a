"""A block-CSR index as NumPy arrays on the CPU, where it is built and checked.

This takes many small steps. On a GPU each would be a kernel launch, and some would synchronize.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from blast.errors import BlastError


class CpuIndex(NamedTuple):
    """A block-CSR index; see `BlockIndex`.

    Attributes:
        row_offsets: `[rows + 1]`, int32.
        col_indices: `[nnz]`, int32.
    """

    row_offsets: np.ndarray
    col_indices: np.ndarray

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> CpuIndex:
        """The index of a mask, bool `[rows, cols]`."""
        rows, cols = np.nonzero(mask)  # row by row, ascending
        return cls(_offsets(np.bincount(rows, minlength=mask.shape[0])), cols.astype(np.int32))

    def rows(self) -> np.ndarray:
        """Block row of each live block: `[nnz]`, int64."""
        return np.asarray(np.repeat(np.arange(self.row_offsets.size - 1), np.diff(self.row_offsets)))

    def flat_indices(self, cols: int) -> np.ndarray:
        """Row-major position of each live block among all blocks of the matrix: `[nnz]`, int64."""
        return np.asarray(self.rows() * cols + self.col_indices)

    def equals(self, other: CpuIndex) -> bool:
        """Whether both indices are equal."""
        return all(np.array_equal(ours, theirs) for ours, theirs in zip(self, other, strict=True))

    def transposed(self, cols: int) -> tuple[CpuIndex, np.ndarray]:
        """The index of the transposed matrix.

        Args:
            cols: Number of block columns of this matrix.

        Returns:
            The transposed index, and `order [nnz]`, int32: block `n` of the transpose is block `order[n]` of this one.
        """
        # A stable sort by column keeps the rows in ascending order.
        order = np.argsort(self.col_indices, kind="stable")
        offsets = _offsets(np.bincount(self.col_indices, minlength=cols))
        return CpuIndex(offsets, self.rows()[order].astype(np.int32)), order.astype(np.int32)

    def check(self, cols: int) -> None:
        """Checks the index.

        Args:
            cols: Number of block columns of the matrix.

        Raises:
            BlastError: with the expected and the actual value.
        """
        offsets, columns = self
        first, last, lengths = int(offsets[0]), int(offsets[-1]), np.diff(offsets)
        if first != 0 or last != columns.size:
            raise BlastError(
                f"row_offsets must run from 0 to {columns.size}, the number of blocks, but run from {first} to {last}."
            )
        if lengths.min() < 0:
            row = int(lengths.argmin())
            raise BlastError(f"row_offsets must not decrease, but block row {row} has {lengths[row]} blocks.")
        if not columns.size:
            return
        low, high = int(columns.min()), int(columns.max())
        if low < 0 or high >= cols:
            raise BlastError(f"col_indices must lie between 0 and {cols - 1}, but lie between {low} and {high}.")
        falls = np.flatnonzero(np.diff(self.flat_indices(cols)) <= 0)
        if falls.size:
            row = int(self.rows()[falls[0] + 1])
            raise BlastError(f"col_indices must ascend within a block row, but do not in block row {row}.")


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(counts.size + 1, dtype=np.int32)
    counts.cumsum(out=offsets[1:])
    return offsets
