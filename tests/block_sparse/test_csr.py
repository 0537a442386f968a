"""Block-CSR stores exactly the live blocks, transposes its index only, and refuses inconsistent input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.block_sparse.blocks import BlockShape, expand_mask
from blast.block_sparse.csr import BlockCSR, BlockIndex, block_of
from blast.errors import BlastError

cases = st.tuples(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16), st.floats(0, 1)
)


def draw(case: tuple) -> tuple[torch.Tensor, torch.Tensor, BlockShape]:
    rows, cols, b_out, b_in, seed, share = case
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows * b_out, cols * b_in, generator=generator)
    return weight, torch.rand(rows, cols, generator=generator) < share, BlockShape(b_out, b_in)


@settings(deadline=None, max_examples=50)
@given(cases)
def test_dense_to_blocks_to_dense_is_the_masked_weight_bit_by_bit(case: tuple) -> None:
    weight, mask, block = draw(case)
    matrix = BlockCSR.from_dense(weight, mask)
    assert matrix.index.block == block
    assert matrix.values.shape == (int(mask.sum()), *block)
    assert torch.equal(matrix.to_dense(), torch.where(expand_mask(mask, block), weight, 0.0))
    assert torch.equal(matrix.mask(), mask)


@settings(deadline=None, max_examples=50)
@given(cases)
def test_a_transposed_index_describes_the_transposed_matrix_with_permuted_values(case: tuple) -> None:
    weight, mask, _ = draw(case)
    matrix = BlockCSR.from_dense(weight, mask)
    index, order = matrix.index.transpose()
    turned = BlockCSR(index, matrix.values[order.long()].transpose(1, 2))
    assert torch.equal(turned.to_dense(), matrix.to_dense().t())
    back, order_back = index.transpose()
    assert torch.equal(back.col_indices, matrix.index.col_indices)
    assert torch.equal(order[order_back.long()], torch.arange(index.nnz, dtype=torch.int32))


def test_indices_are_int32_and_sparsity_is_the_share_of_empty_blocks() -> None:
    index = BlockIndex.from_mask(torch.tensor([[True, False], [False, False]]), (8, 4))
    assert (index.row_offsets.dtype, index.col_indices.dtype) == (torch.int32, torch.int32)
    assert index.row_offsets.tolist() == [0, 1, 1]
    assert (index.sparsity, index.grid, index.block) == (0.75, (2, 2), (4, 2))


def test_a_strided_weight_gives_the_same_blocks_as_its_copy() -> None:
    weight, mask = torch.randn(6, 8), torch.rand(4, 3) < 0.5
    strided = BlockCSR.from_dense(weight.t(), mask).values
    assert torch.equal(strided, BlockCSR.from_dense(weight.t().contiguous(), mask).values)
    assert strided.is_contiguous()


def test_the_gradient_reaches_the_values_through_to_dense() -> None:
    matrix = BlockCSR.from_dense(torch.randn(4, 4), torch.eye(2, dtype=torch.bool))
    values = matrix.values.requires_grad_()
    (BlockCSR(matrix.index, values).to_dense() * torch.arange(16.0).view(4, 4)).sum().backward()
    assert values.grad[1].tolist() == [[10, 11], [14, 15]]


def test_moving_an_index_to_its_own_device_returns_it() -> None:
    index = BlockIndex.from_mask(torch.ones(2, 2, dtype=torch.bool), (4, 4))
    assert index.to("cpu") is index
    assert index.to("meta").row_offsets.is_meta


def ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("offsets", "columns", "message"),
    [
        (ints(0, 1), ints(0), r"row_offsets must have 3 entries for 2 block rows, but has 2"),
        (ints(0, 1, 3), ints(0, 1), r"must run from 0 to 2, the number of blocks, but run from 0 to 3"),
        (ints(1, 1, 2), ints(0, 1), r"must run from 0 to 2, .* but run from 1 to 2"),
        (ints(0, 3, 2), ints(0, 1), r"must not decrease, but block row 1 has -1 blocks"),
        (ints(0, 1, 2), ints(0, 3), r"between 0 and 2, but lie between 0 and 3"),
        (ints(0, 1, 2), ints(-1, 1), r"between 0 and 2, but lie between -1 and 1"),
        (ints(0, 1, 3), ints(0, 2, 1), r"must ascend within a block row, but do not in block row 1"),
        (ints(0, 0, 2), ints(1, 1), r"must ascend within a block row, but do not in block row 1"),
        (ints(0, 1, 2).long(), ints(0, 1), r"row_offsets must be a contiguous int32 vector, but is torch.int64 \[3\]"),
        (ints(0, 1, 2), ints(0, 1, 2, 1)[::2], r"col_indices must be a contiguous int32 vector, .* with strides"),
    ],
)
def test_an_inconsistent_index_is_refused_with_expected_and_actual(offsets, columns, message) -> None:
    with pytest.raises(BlastError, match=message):
        BlockIndex(offsets, columns, (4, 6), BlockShape(2, 2))


def test_columns_may_start_again_in_the_next_block_row() -> None:
    assert BlockIndex(ints(0, 1, 2), ints(2, 0), (4, 6), BlockShape(2, 2)).mask().tolist() == [
        [False, False, True],
        [True, False, False],
    ]


def test_blocks_that_do_not_tile_are_refused_with_both_sizes() -> None:
    with pytest.raises(BlastError, match="blocks of 3 x 2 do not tile a matrix of 4 x 6"):
        BlockIndex(ints(0, 1), ints(0), (4, 6), BlockShape(3, 2))
    with pytest.raises(BlastError, match="a mask of 3 x 2 blocks does not tile a weight of 4 x 6"):
        block_of(torch.ones(3, 2, dtype=torch.bool), (4, 6))
    with pytest.raises(BlastError, match=r"must be a bool matrix over blocks, not torch.float32 \[2, 2\]"):
        block_of(torch.ones(2, 2), (4, 6))


def test_values_that_do_not_fit_the_index_are_refused_with_both_shapes() -> None:
    index = BlockIndex.from_mask(torch.ones(2, 3, dtype=torch.bool), (4, 6))
    with pytest.raises(BlastError, match=r"values must be \[6, 2, 2\] .* but are \[5, 2, 2\]"):
        BlockCSR(index, torch.zeros(5, 2, 2))


def test_an_index_whose_tensors_have_no_values_still_knows_its_mask():
    mask = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    found = BlockIndex.from_mask(mask, (8, 40)).to("meta").mask()
    assert found.device.type == "cpu"
    assert torch.equal(found, mask)
