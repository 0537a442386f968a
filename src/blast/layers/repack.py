"""Blocks of one layout taken into another: what a mask update does to values, gradients and optimizer state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blast.layers.block_csr import BlockCSR, BlockIndex
from blast.sparsity.blocks import tiles


@dataclass(frozen=True)
class Moves:
    """Which blocks of a new layout come from which of an old one.

    Attributes:
        index: The new layout.
        into: Places of the blocks that both have, in the new layout.
        source: The same blocks in the old one.
        grown: Places of the blocks that only the new one has.
    """

    index: BlockIndex
    into: Tensor
    source: Tensor
    grown: Tensor

    @classmethod
    def between(cls, old: BlockIndex, new: BlockIndex) -> Moves:
        """The moves from one layout of a matrix to another of the same blocks."""
        rows, cols = old.grid
        place = torch.full((rows * cols,), -1, device=new.col_indices.device)
        place[_places(old, cols)] = torch.arange(old.nnz, device=place.device)
        found = place[_places(new, cols)]
        into = (found >= 0).nonzero()[:, 0]
        return cls(new, into, found[into], (found < 0).nonzero()[:, 0])

    def carry(self, blocks: Tensor) -> Tensor:
        """Blocks `[nnz, b_out, b_in]` in the new layout; grown ones are zero, dropped ones are gone."""
        out = blocks.new_zeros(self.index.nnz, *self.index.block)
        out[self.into] = blocks[self.source]
        return out

    def carry_with(self, blocks: Tensor, dense: Tensor) -> Tensor:
        """`carry`, with the grown blocks taken from a dense matrix `[out, in]`."""
        out = self.carry(blocks)
        rows, cols = self.index.row_indices()[self.grown], self.index.col_indices.long()[self.grown]
        out[self.grown] = tiles(dense, self.index.block).transpose(1, 2)[rows, cols].to(out.dtype)
        return out


def gathered(dense: Tensor, index: BlockIndex) -> Tensor:
    """The live blocks `[nnz, b_out, b_in]` of a dense `[out, in]`."""
    blocks = tiles(dense, index.block).transpose(1, 2)
    return blocks[index.row_indices(), index.col_indices.long()].contiguous()


def scattered(blocks: Tensor, index: BlockIndex) -> Tensor:
    """The dense `[out, in]` of live blocks; zeros elsewhere."""
    return BlockCSR(index, blocks).to_dense()


def norms_of(values: Tensor, index: BlockIndex) -> Tensor:
    """Frobenius norm of each block of the whole matrix `[out / b_out, in / b_in]`, float32; zero where none is."""
    norms = torch.zeros(index.grid, device=values.device)
    norms[index.row_indices(), index.col_indices.long()] = values.float().square().sum(dim=(1, 2)).sqrt()
    return norms


def _places(index: BlockIndex, cols: int) -> Tensor:
    return index.row_indices() * cols + index.col_indices.long()
