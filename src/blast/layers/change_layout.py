"""From an old block layout to a new one: how a mask update moves values, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blast_kernels.common.batched_copy import batched_copy_by_device
from torch import Tensor

from blast.block_sparse.blocks import tiles
from blast.block_sparse.cpu_index import CpuIndex
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.mlp_autograd import list_arrays
from blast.layers.training_mlp import TrainingMlp


@dataclass(frozen=True)
class BlockRemap:
    """Maps the blocks of an old layout to a new one.

    Attributes:
        index: The new layout.
        source: `[nnz]`, int64: for each block of the new layout its position in the old one; arbitrary if grown.
        grown: Positions of the grown blocks in the new layout, int64.
        grown_at: Block row and block column of the grown blocks, int64.
    """

    index: BlockIndex
    source: Tensor
    grown: Tensor
    grown_at: tuple[Tensor, Tensor]

    def apply(self, blocks: Tensor) -> Tensor:
        """Blocks `[nnz, b_out, b_in]` in the new layout; grown blocks are zero, dropped blocks are removed."""
        out = self._selected(blocks)
        return out.index_fill_(0, self.grown, 0) if self.grown.numel() else out

    def apply_with_dense(self, blocks: Tensor, dense: Tensor) -> Tensor:
        """`apply`, with the grown blocks taken from a dense matrix `[out, in]`."""
        out = self._selected(blocks)
        if not self.grown.numel():
            return out
        return out.index_copy_(0, self.grown, _blocks_at(dense, self.index, self.grown_at).to(out.dtype))

    def _selected(self, blocks: Tensor) -> Tensor:
        if not blocks.shape[0]:
            return blocks.new_zeros(self.index.nnz, *self.index.block)
        return blocks.index_select(0, self.source)


def change_layouts(
    changes: Mapping[IndexBuffers, np.ndarray], mlps: Sequence[TrainingMlp]
) -> dict[IndexBuffers, tuple[IndexBuffers, BlockRemap]]:
    """New layouts of matrices, computed on the CPU and copied to the device in two transfers.

    MLPs with a changed matrix get their new index lists. The matrices still have their old layouts afterwards.

    Args:
        changes: For each old layout a new mask, bool `[rows, cols]`.
        mlps: The MLPs of the model.

    Returns:
        For each old layout whose mask changes, the new layout and the remap to it.
    """
    layouts_on_cpu = {}
    for old, mask in changes.items():
        new = CpuIndex.from_mask(mask)
        if not new.equals(old.index.cpu_index):
            layouts_on_cpu[old] = _NewLayout(old.index, new)

    def cpu_index_of(layer: BlockLinear) -> CpuIndex:
        changed = layouts_on_cpu.get(layer.index)
        return layer.index.index.cpu_index if changed is None else changed.new

    affected = [mlp for mlp in mlps if any(layer.index in layouts_on_cpu for layer in mlp.layers)]
    arrays = list_arrays([(mlp.layers, [cpu_index_of(layer) for layer in mlp.layers]) for mlp in affected])
    lists = [(mlp.layers[-1].values.device, ours) for mlp, ours in zip(affected, arrays, strict=True)]
    # A separate transfer: these are saved with the model, and saving a view stores its whole memory.
    saved = batched_copy_by_device([(layout.device, layout.new) for layout in layouts_on_cpu.values()])
    made = batched_copy_by_device([*((layout.device, layout.arrays()) for layout in layouts_on_cpu.values()), *lists])
    layouts = {
        old: layout.made(*parts) for (old, layout), *parts in zip(layouts_on_cpu.items(), saved, made, strict=False)
    }
    for mlp, tensors in zip(affected, made[len(layouts_on_cpu) :], strict=True):
        mlp.lists.set(tensors, [layouts[x.index][0] if x.index in layouts else x.index for x in mlp.layers])
    return layouts


@dataclass(frozen=True)
class _NewLayout:
    """A new layout on the CPU, and the old layout that it replaces."""

    old: BlockIndex
    new: CpuIndex

    @property
    def device(self) -> torch.device:
        return self.old.row_offsets.device

    def arrays(self) -> list[np.ndarray]:
        """The arrays that `made` takes, computed from both layouts."""
        rows, cols = self.old.grid
        position = np.full(rows * cols, -1)
        position[self.old.cpu_index.flat_indices(cols)] = np.arange(self.old.nnz)
        found = position[self.new.flat_indices(cols)]
        grown = np.flatnonzero(found < 0)
        transposed, order = self.new.transposed(cols)
        at = self.new.rows(), self.new.col_indices.astype(np.int64)
        return [*transposed, order, *at, np.maximum(found, 0), grown, at[0][grown], at[1][grown]]

    def made(self, saved: Sequence[Tensor], parts: Sequence[Tensor]) -> tuple[IndexBuffers, BlockRemap]:
        """The layout on the device.

        Args:
            saved: Copies of the arrays of `new`.
            parts: Copies of `arrays()`.
        """
        *transposed, row, col, source, grown, grown_row, grown_col = parts
        offsets, columns = saved
        index = BlockIndex.unchecked(self.new, offsets, columns, self.old.shape, self.old.block, (row, col))
        return IndexBuffers(index, transposed), BlockRemap(index, source, grown, (grown_row, grown_col))


def gather_blocks(dense: Tensor, index: BlockIndex) -> Tensor:
    """The live blocks `[nnz, b_out, b_in]` of a dense `[out, in]`."""
    return _blocks_at(dense, index, index.coordinates()).contiguous()


def scatter_blocks(blocks: Tensor, index: BlockIndex) -> Tensor:
    """The dense `[out, in]` of live blocks; zeros elsewhere."""
    return BlockCSR(index, blocks).to_dense()


def _blocks_at(dense: Tensor, index: BlockIndex, places: tuple[Tensor, Tensor]) -> Tensor:
    rows, cols = places
    return tiles(dense, index.block)[rows, :, cols]
