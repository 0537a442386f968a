"""Blocks of one layout taken into another: what a mask update does to values, gradients and optimizer state."""

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
from blast.layers.block_linear import IndexBuffers
from blast.layers.mlp_autograd import list_arrays
from blast.layers.training_mlp import TrainingMlp


@dataclass(frozen=True)
class BlockRemap:
    """Which blocks of a new layout come from which of an old one.

    Attributes:
        index: The new layout.
        source: For each block of the new layout its place in the old one; any place for one that is grown. int64.
        grown: Places of the blocks that only the new one has, int64.
        grown_at: Block row and block column of these, int64.
    """

    index: BlockIndex
    source: Tensor
    grown: Tensor
    grown_at: tuple[Tensor, Tensor]

    def apply(self, blocks: Tensor) -> Tensor:
        """Blocks `[nnz, b_out, b_in]` in the new layout; grown ones are zero, dropped ones are gone."""
        out = self._taken(blocks)
        return out.index_fill_(0, self.grown, 0) if self.grown.numel() else out

    def apply_with_dense(self, blocks: Tensor, dense: Tensor) -> Tensor:
        """`apply`, with the grown blocks taken from a dense matrix `[out, in]`."""
        out = self._taken(blocks)
        if not self.grown.numel():
            return out
        return out.index_copy_(0, self.grown, _blocks_at(dense, self.index, self.grown_at).to(out.dtype))

    def _taken(self, blocks: Tensor) -> Tensor:
        if not blocks.shape[0]:
            return blocks.new_zeros(self.index.nnz, *self.index.block)
        return blocks.index_select(0, self.source)


def change_layouts(
    changes: Mapping[IndexBuffers, np.ndarray], mlps: Sequence[TrainingMlp]
) -> dict[IndexBuffers, tuple[IndexBuffers, BlockRemap]]:
    """New layouts for matrices, made on the host for all of them and copied in two transfers.

    Args:
        changes: For the buffers of an index a new mask, bool `[rows, cols]` on the host.
        mlps: MLPs in training; those with a matrix whose layout changes are given the lists of their new layouts.

    Returns:
        For each of the old buffers, where masks differ, the new ones and the moves to them; the matrices hold them not
        yet.
    """
    plans = {}
    for old, mask in changes.items():
        new = CpuIndex.from_mask(mask)
        if not new.equals(old.index.cpu_index):
            plans[old] = _Plan(old.index, new)
    hit = [mlp for mlp in mlps if any(layer.index in plans for layer in mlp.layers)]
    indices = [[plans[x.index].new if x.index in plans else x.index.index.cpu_index for x in mlp.layers] for mlp in hit]
    arrays = list_arrays([(mlp.layers, ours) for mlp, ours in zip(hit, indices, strict=True)])
    lists = [(mlp.layers[-1].values.device, ours) for mlp, ours in zip(hit, arrays, strict=True)]
    # Apart from what follows from it, since it is saved with the model, and a part is saved with its whole memory.
    saved = batched_copy_by_device([(plan.device, plan.new) for plan in plans.values()])
    made = batched_copy_by_device([*((plan.device, plan.arrays()) for plan in plans.values()), *lists])
    layouts = {old: plan.made(*parts) for (old, plan), *parts in zip(plans.items(), saved, made, strict=False)}
    for mlp, tensors in zip(hit, made[len(plans) :], strict=True):
        indices = [layouts[x.index][0] if x.index in layouts else x.index for x in mlp.layers]
        mlp.lists.take(tensors, indices)
    return layouts


@dataclass(frozen=True)
class _Plan:
    """A new layout on the host, for a matrix of an old one."""

    old: BlockIndex
    new: CpuIndex

    @property
    def device(self) -> torch.device:
        return self.old.row_offsets.device

    def arrays(self) -> list[np.ndarray]:
        """What follows from the two layouts."""
        rows, cols = self.old.grid
        place = np.full(rows * cols, -1)
        place[self.old.cpu_index.flat_indices(cols)] = np.arange(self.old.nnz)
        found = place[self.new.flat_indices(cols)]
        grown = np.flatnonzero(found < 0)
        transposed, order = self.new.transposed(cols)
        at = self.new.rows(), self.new.col_indices.astype(np.int64)
        return [*transposed, order, *at, np.maximum(found, 0), grown, at[0][grown], at[1][grown]]

    def made(self, saved: Sequence[Tensor], parts: Sequence[Tensor]) -> tuple[IndexBuffers, BlockRemap]:
        """The layout from copies of `new` and of `arrays`."""
        *transposed, row, col, source, grown, grown_row, grown_col = parts
        index = BlockIndex.unchecked(self.new, *saved, self.old.shape, self.old.block, (row, col))
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
