from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.block_sparse.blocks import (
    BlockShape,
    as_block,
    block_grid,
    block_squares,
    clear_dead_,
    expand_mask,
    keep_count,
    tiles,
)
from blast.errors import BlastError

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.booleans())


def weight_and_block(grid: tuple[int, int, int, int, bool], seed: int = 0) -> tuple[torch.Tensor, BlockShape]:
    rows, cols, b_out, b_in, transposed = grid
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * b_out, cols * b_in)
    if transposed:
        return torch.randn(*shape[::-1], generator=generator).t(), BlockShape(b_out, b_in)
    return torch.randn(*shape, generator=generator), BlockShape(b_out, b_in)


@settings(deadline=None, max_examples=40)
@given(GRIDS)
def test_block_squares_are_the_sums_of_squares_of_the_slices(grid):
    weight, block = weight_and_block(grid)
    squares = block_squares(tiles(weight, block))
    for i in range(grid[0]):
        for j in range(grid[1]):
            part = weight[i * block.rows : (i + 1) * block.rows, j * block.cols : (j + 1) * block.cols]
            torch.testing.assert_close(squares[i, j], part.square().sum())


@settings(deadline=None, max_examples=40)
@given(GRIDS, st.integers(0, 1000))
def test_clearing_zeroes_the_dead_blocks_only(grid, seed):
    weight, block = weight_and_block(grid, seed)
    mask = torch.rand(grid[:2], generator=torch.Generator().manual_seed(seed)) < 0.5
    before = weight.clone()
    returned = clear_dead_(weight, mask, block)
    assert returned is weight
    assert torch.equal(weight, torch.where(expand_mask(mask, block), before, torch.zeros_like(before)))


def test_clearing_removes_nan_and_inf():
    weight = torch.full((4, 4), float("nan"))
    clear_dead_(weight, torch.tensor([[True, False], [False, False]]), BlockShape(2, 2))
    assert weight[:2, :2].isnan().all()
    assert weight.nan_to_num(7).count_nonzero() == 4


def test_tiles_are_a_view_of_a_transposed_weight():
    stored = torch.zeros(6, 4)
    tiles(stored.t(), BlockShape(2, 3))[1, :, 0, :] = 1
    assert stored[:3, 2:].eq(1).all()
    assert stored.sum() == 6


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_keep_count_is_rounded_and_at_least_one(blocks, sparsity):
    count = keep_count(blocks, sparsity)
    assert 1 <= count <= blocks
    assert count == 1 or abs(count - (1 - sparsity) * blocks) <= 0.5


def test_a_block_that_does_not_divide_is_refused_and_valid_sides_are_listed():
    with pytest.raises(
        BlastError, match=r"block 128 does not divide 'h.0.mlp' of shape 6400x1600 .* do: 8, 16, 32, 64\."
    ):
        block_grid((6400, 1600), as_block(128), "h.0.mlp")


def test_a_rectangular_block_is_rows_by_columns_of_the_weight():
    assert as_block([32, 128]) == BlockShape(rows=32, cols=128)
    assert block_grid((64, 256), as_block((32, 128))) == (2, 2)
    assert str(as_block((32, 128))) == "32x128"


@pytest.mark.parametrize("block", [0, -16, True, "16", 1.5, [16], [16, 16, 16], [16, 0], None])
def test_an_invalid_block_is_refused(block):
    with pytest.raises(BlastError, match="block is"):
        as_block(block)
