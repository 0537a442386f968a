"""The row_list the fast kernels read, and the packing of tied gates."""

from __future__ import annotations

import torch
from blast_kernels.mlp_inference.row_lists import (
    drop_columns,
    gated_row_list,
    live_hidden_rows,
    pack_tied,
    plain_row_list,
    unpack_tied,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import index_of, mask_of

masks = st.builds(
    lambda rows, cols, seed, density: mask_of("uniform", rows, cols, seed, density),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 99),
    st.floats(0, 1),
)


@settings(deadline=None, max_examples=40)
@given(masks)
def test_records_hold_every_block_once_longest_rows_first(mask):
    offsets, indices = index_of(mask)
    row_list = plain_row_list(offsets, indices)
    assert row_list.dtype == torch.int32
    assert row_list.shape[0] == mask.shape[0]
    assert row_list.shape[1] % 32 == 0
    lengths = []
    seen = torch.zeros_like(mask)
    for row, start, middle, end, *columns in row_list.tolist():
        assert (start, end) == (offsets[row], offsets[row + 1])
        assert middle == end
        assert len(columns) > end - start, "kernels fetch one column ahead"
        seen[row, columns[: end - start]] = True
        lengths.append(end - start)
    assert torch.equal(seen, mask)
    assert lengths == sorted(lengths, reverse=True)


@settings(deadline=None, max_examples=40)
@given(masks, st.integers(0, 99))
def test_gated_records_store_each_rows_gate_before_its_up(gate, seed):
    up = mask_of("uniform", *gate.shape, seed, 0.4)
    (gate_offsets, gate_indices), (up_offsets, up_indices) = index_of(gate), index_of(up)
    row_list, order = gated_row_list(gate_offsets, gate_indices, up_offsets, up_indices)
    assert order.sort().values.tolist() == list(range(len(gate_indices) + len(up_indices)))
    # A block is known by matrix, row and column.
    names = [(0, *at) for at in gate.nonzero().tolist()] + [(1, *at) for at in up.nonzero().tolist()]
    stored = [names[n] for n in order.tolist()]
    for row, start, middle, end, *columns in row_list.tolist():
        expected = [(0, row, column) for column in columns[: middle - start]]
        expected += [(1, row, column) for column in columns[middle - start : end - start]]
        assert stored[start:end] == expected


def test_rows_that_nobody_reads_get_no_record():
    mask = mask_of("full", 4, 3)
    live = torch.tensor([True, False, True, False])
    assert sorted(plain_row_list(*index_of(mask), live)[:, 0].tolist()) == [0, 2]


def test_hidden_blocks_that_are_zero_or_unread_are_dead():
    gate = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]], dtype=torch.bool)
    up = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=torch.bool)
    down = torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)
    live = live_hidden_rows(index_of(gate)[0], index_of(up)[0], index_of(down)[1])
    assert live.tolist() == [True, False, False, False]


def test_dropping_columns_keeps_exactly_the_blocks_that_read_live_inputs():
    mask = mask_of("uniform", 5, 6)
    live = torch.tensor([True, False, True, True, False, True])
    offsets, indices, kept = drop_columns(*index_of(mask), live)
    expected = index_of(mask & live)
    assert torch.equal(offsets, expected[0])
    assert torch.equal(indices, expected[1])
    assert torch.equal(kept, live[mask.nonzero()[:, 1]].nonzero()[:, 0])


def test_packing_tied_blocks_is_undone_by_unpacking():
    gate, up = torch.randn(2, 3, 32, 16)
    packed = pack_tied(gate, up)
    assert torch.equal(packed[0, :8], gate[0, :8])
    assert torch.equal(packed[0, 8:16], up[0, :8])
    assert all(torch.equal(*pair) for pair in zip(unpack_tied(packed), (gate, up), strict=True))
