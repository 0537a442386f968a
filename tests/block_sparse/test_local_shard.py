"""Where a shard lies among the blocks of its matrix."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.sharding import LocalShard

BLOCK = BlockShape(4, 8)


def test_a_shard_that_cuts_through_blocks_is_completed_to_whole_ones():
    matrix = torch.arange(12.0 * 16).view(12, 16)
    # Rows 5 to 9 and columns 6 to 15: of the block rows 1 and 2 and of both block columns.
    shard = LocalShard(matrix[5:10, 6:], row=5, col=6, groups=())
    assert shard.blocks(BLOCK) == (slice(1, 3), slice(0, 2))
    whole = F.pad(shard.tensor, shard.padding(BLOCK))
    expected = torch.zeros(8, 16)
    expected[1:6, 6:] = shard.tensor
    assert torch.equal(whole, expected)


def test_a_transposed_shard_lies_at_the_transposed_place():
    shard = LocalShard(torch.rand(3, 5), row=4, col=8, groups=())
    turned = shard.transposed(True)
    assert (turned.row, turned.col) == (8, 4)
    assert torch.equal(turned.tensor, shard.tensor.t())
    assert shard.transposed(False) is shard
