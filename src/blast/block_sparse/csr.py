"""Block-CSR: a matrix that stores only its live blocks, and their index.

Block row `r` owns the blocks `row_offsets[r]` up to `row_offsets[r + 1]` of `values`; `col_indices` gives the block
column of each. Within a block row the columns ascend.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from blast.block_sparse.blocks import BlockShape, tiles
from blast.block_sparse.cpu_index import CpuIndex
from blast.errors import BlastError, check_argument


@dataclass(frozen=True, eq=False)
class BlockIndex:
    """Positions of the live blocks of a matrix. Checked when created.

    Matrices with equal masks can share one index.

    Args:
        row_offsets: `[rows + 1]`, int32.
        col_indices: `[nnz]`, int32.
        shape: `(out, in)` of the matrix, in elements.
        block: Rows and columns of a block, in elements.

    Raises:
        BlastError: if the index is inconsistent; the message gives the expected and the actual value.
    """

    row_offsets: Tensor
    col_indices: Tensor
    shape: tuple[int, int]
    block: BlockShape
    # None if it was built from tensors on the meta device.
    _cpu_index: CpuIndex | None = field(init=False, repr=False, default=None)
    # Block row and block column of each live block, on the device of the index; None if not computed yet.
    _coordinates: tuple[Tensor, Tensor] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "block", BlockShape(*self.block))
        _check_layout(self)
        if not self.row_offsets.is_meta:
            # Copies: writing to the tensors (load_state_dict) must not change another index of the same tensors.
            cpu_index = CpuIndex(*(tensor.cpu().numpy().copy() for tensor in (self.row_offsets, self.col_indices)))
            cpu_index.check(self.grid[1])
            object.__setattr__(self, "_cpu_index", cpu_index)

    @classmethod
    def unchecked(
        cls,
        cpu_index: CpuIndex,
        row_offsets: Tensor,
        col_indices: Tensor,
        shape: tuple[int, int],
        block: BlockShape,
        coordinates: tuple[Tensor, Tensor] | None = None,
    ) -> BlockIndex:
        """An index that is not checked, because it was built on the CPU. Does not synchronize with the GPU.

        Args:
            cpu_index: The index on the CPU.
            row_offsets: A copy of its offsets on any device.
            col_indices: A copy of its columns on the same device.
            shape: As for the class.
            block: As for the class.
            coordinates: Block row and block column of each live block, `[nnz]`, int64; computed if left out.
        """
        index = object.__new__(cls)
        values = (row_offsets, col_indices, tuple(shape), BlockShape(*block), cpu_index, coordinates)
        for name, value in zip(
            ("row_offsets", "col_indices", "shape", "block", "_cpu_index", "_coordinates"), values, strict=True
        ):
            object.__setattr__(index, name, value)
        return index

    @property
    def cpu_index(self) -> CpuIndex:
        """The same index as arrays on the CPU.

        Raises:
            BlastError: if the index is on the meta device.
        """
        if self._cpu_index is None:
            raise BlastError("an index on the meta device has no positions; load the model first.")
        return self._cpu_index

    @property
    def is_known(self) -> bool:
        """Whether the positions are known; an index that was built from tensors on the meta device has none."""
        return self._cpu_index is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns."""
        return self.shape[0] // self.block.rows, self.shape[1] // self.block.cols

    @property
    def nnz(self) -> int:
        """Number of live blocks."""
        return self.col_indices.numel()

    @property
    def sparsity(self) -> float:
        """Fraction of the blocks that are empty."""
        rows, cols = self.grid
        return 1.0 - self.nnz / (rows * cols)

    @classmethod
    def from_mask(cls, mask: Tensor, shape: tuple[int, int]) -> BlockIndex:
        """The index of a mask. The two shapes give the block shape.

        Args:
            mask: Bool `[out / b_out, in / b_in]`, True is live.
            shape: `(out, in)` in elements.

        Raises:
            BlastError: if the mask does not tile the shape.
        """
        block = block_of(mask, shape)
        cpu_index = CpuIndex.from_mask(mask.cpu().numpy())
        row_offsets, col_indices = (torch.tensor(array, device=mask.device) for array in cpu_index)
        return cls.unchecked(cpu_index, row_offsets, col_indices, shape, block)

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Block row and block column of each live block: both `[nnz]`, int64."""
        if self._coordinates is not None:
            return self._coordinates
        rows = torch.arange(self.grid[0], device=self.row_offsets.device)
        rows = torch.repeat_interleave(rows, self.row_offsets.diff().long(), output_size=self.nnz)
        return rows, self.col_indices.long()

    def mask(self) -> Tensor:
        """The mask `[out / b_out, in / b_in]`, bool; on the CPU if the index is on the meta device."""
        if self.row_offsets.is_meta and self._cpu_index is not None:
            flat = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.bool)
            flat[torch.from_numpy(self._cpu_index.flat_indices(self.grid[1]))] = True
            return flat.view(self.grid)
        mask = torch.zeros(self.grid, dtype=torch.bool, device=self.row_offsets.device)
        mask[self.coordinates()] = True
        return mask

    def transpose(self) -> tuple[BlockIndex, Tensor]:
        """The index of the transposed matrix.

        Returns:
            The index of `Wᵀ`, and `order [nnz]`, int32: block `n` of `Wᵀ` is `values[order[n]]`, transposed.
        """
        cols, shape, block = self.grid[1], self.shape[::-1], BlockShape(self.block.cols, self.block.rows)
        if self._cpu_index is None:
            offsets = self.row_offsets.new_empty(cols + 1)
            return BlockIndex(offsets, torch.empty_like(self.col_indices), shape, block), self.col_indices.clone()
        cpu_index, order = self.cpu_index.transposed(cols)
        arrays = (*cpu_index, order)
        offsets, indices, order_here = (torch.tensor(array, device=self.row_offsets.device) for array in arrays)
        return BlockIndex.unchecked(cpu_index, offsets, indices, shape, block), order_here

    def to(self, device: torch.device | str) -> BlockIndex:
        """The same index on another device; the index itself if it is there already."""
        offsets, indices = self.row_offsets.to(device), self.col_indices.to(device)
        if offsets is self.row_offsets and indices is self.col_indices:
            return self
        if self._cpu_index is None:
            return BlockIndex(offsets, indices, self.shape, self.block)
        return BlockIndex.unchecked(self.cpu_index, offsets, indices, self.shape, self.block)


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """A block-sparse matrix: an index and the values of its live blocks.

    Args:
        index: Positions of the live blocks.
        values: `[nnz, b_out, b_in]`.

    Raises:
        BlastError: if `values` does not fit the index.

    Example:
        >>> matrix = blast.BlockCSR.from_dense(torch.randn(32, 64), mask=torch.eye(2, dtype=torch.bool))
        >>> matrix.index.sparsity, matrix.values.shape
        (0.5, torch.Size([2, 16, 32]))
    """

    index: BlockIndex
    values: Tensor

    def __post_init__(self) -> None:
        check_argument(
            "the index", self.index, BlockIndex, "a BlockIndex, for instance BlockIndex.from_mask(mask, shape)"
        )
        check_argument("the argument `values`", self.values, Tensor, "a tensor [nnz, b_out, b_in]")
        expected = (self.index.nnz, *self.index.block)
        if tuple(self.values.shape) != expected:
            raise BlastError(
                f"values must be {list(expected)} (live blocks, block rows, block columns), "
                f"but are {list(self.values.shape)}."
            )

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor, index: BlockIndex | None = None) -> BlockCSR:
        """Copies the live blocks of a dense matrix.

        Args:
            weight: Dense `[out, in]` with any strides.
            mask: Bool `[out / b_out, in / b_in]`, True is live.
            index: An existing index of this mask, to be shared.

        Raises:
            BlastError: if the mask does not tile the weight.
        """
        check_argument("the weight", weight, Tensor, "a tensor [out, in]")
        if weight.dim() != 2:
            raise BlastError(f"the weight has the shape {list(weight.shape)}; give a matrix [out, in].")
        if index is None:
            check_argument("a mask", mask, Tensor, "a bool tensor over blocks, for instance torch.as_tensor(mask)")
            index = BlockIndex.from_mask(mask.to(weight.device), (weight.shape[0], weight.shape[1]))
        blocks = tiles(weight, index.block).transpose(1, 2)  # [rows, cols, b_out, b_in]
        return cls(index, blocks[index.coordinates()].contiguous())

    def to_dense(self) -> Tensor:
        """The dense matrix `[out, in]`: exact copies of the live blocks, zeros elsewhere. Differentiable."""
        rows, cols = self.index.grid
        empty = self.values.new_zeros(rows, cols, *self.index.block)
        blocks = empty.index_put(self.index.coordinates(), self.values)
        return blocks.transpose(1, 2).reshape(self.index.shape)

    def mask(self) -> Tensor:
        """The mask `[out / b_out, in / b_in]`, bool."""
        return self.index.mask()


def block_of(mask: Tensor, shape: tuple[int, int]) -> BlockShape:
    """The block shape that follows from a mask and the shape of its matrix.

    Args:
        mask: Bool `[rows, cols]`.
        shape: `(out, in)` of the matrix.

    Raises:
        BlastError: if the mask is not a bool matrix, or its sides do not divide those of the matrix.
    """
    check_argument("a mask", mask, Tensor, "a bool tensor over blocks, for instance torch.as_tensor(mask)")
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise BlastError(
            f"a mask must be a bool matrix over blocks, not {mask.dtype} {list(mask.shape)}; "
            "give one entry for each block, and convert it with mask.bool()."
        )
    if mask.is_meta:
        raise BlastError("a mask is on the meta device, where it has no values; give it on the CPU or a GPU.")
    if not all(mask.shape) or shape[0] % mask.shape[0] or shape[1] % mask.shape[1]:
        raise BlastError(
            f"a mask of {mask.shape[0]} x {mask.shape[1]} blocks does not tile a weight of {shape[0]} x {shape[1]}; "
            "each side of the weight must be a multiple of the mask's."
        )
    return BlockShape(shape[0] // mask.shape[0], shape[1] // mask.shape[1])


def _check_layout(index: BlockIndex) -> None:
    (out, into), block = index.shape, index.block
    if block.rows < 1 or block.cols < 1 or out % block.rows or into % block.cols or not out or not into:
        raise BlastError(
            f"blocks of {block.rows} x {block.cols} do not tile a matrix of {out} x {into}; "
            "each side must be a multiple of the block's."
        )
    for name, tensor in (("row_offsets", index.row_offsets), ("col_indices", index.col_indices)):
        check_argument(
            name, tensor, Tensor, "an int32 vector, or build the index with BlockIndex.from_mask(mask, shape)"
        )
        if tensor.dtype != torch.int32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise BlastError(
                f"{name} must be a contiguous int32 vector, but is {tensor.dtype} {list(tensor.shape)}"
                f"{'' if tensor.is_contiguous() else ' with strides'}."
            )
    if index.row_offsets.device != index.col_indices.device:
        raise BlastError(
            f"row_offsets and col_indices must be on one device, but are on {index.row_offsets.device} "
            f"and {index.col_indices.device}."
        )
    rows = index.grid[0]
    if index.row_offsets.numel() != rows + 1:
        raise BlastError(
            f"row_offsets must have {rows + 1} entries for {rows} block rows, but has {index.row_offsets.numel()}."
        )
