"""The row_list the fast kernels read, and the packing of tied gates."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.mlp_inference.row_lists import (
    HALF,
    block_counts,
    drop_columns,
    gated_row_list,
    live_hidden_rows,
    plain_row_list,
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
    for row, start, up_start, counts, *columns in row_list.tolist():
        up_count, count = divmod(counts, 1 << HALF)
        assert (start, start + count) == (offsets[row], offsets[row + 1])
        assert (up_start, up_count) == (0, 0)
        assert len(columns) > count, "kernels fetch one column ahead"
        seen[row, columns[:count]] = True
        lengths.append(count)
    assert torch.equal(seen, mask)
    assert lengths == sorted(lengths, reverse=True)


@settings(deadline=None, max_examples=40)
@given(masks, st.integers(0, 99))
def test_gated_records_name_the_blocks_of_each_row_where_the_two_matrices_hold_them(gate, seed):
    up = mask_of("uniform", *gate.shape, seed, 0.4)
    (gate_offsets, gate_indices), (up_offsets, up_indices) = index_of(gate), index_of(up)
    row_list = gated_row_list(gate_offsets, gate_indices, up_offsets, up_indices)
    stored = gate.nonzero().tolist(), up.nonzero().tolist()
    found = 0
    for row, start, up_start, counts, *columns in row_list.tolist():
        up_count, count = divmod(counts, 1 << HALF)
        assert stored[0][start : start + count] == [[row, column] for column in columns[:count]]
        ups = columns[count : count + up_count]
        assert stored[1][up_start : up_start + up_count] == [[row, column] for column in ups]
        found += count + up_count
    assert found == len(stored[0]) + len(stored[1]) == block_counts(row_list).sum()


@settings(deadline=None, max_examples=40)
@given(masks, st.integers(0, 99))
def test_records_of_some_blocks_give_the_place_of_each(mask, seed):
    live = torch.rand(mask.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.6
    offsets, indices, places = drop_columns(*index_of(mask), live)
    stored, seen = mask.nonzero().tolist(), []
    for row, start, _, count, *entries in plain_row_list(offsets, indices, places=places).tolist():
        for entry in entries[:count]:
            place, column = divmod(entry, 1 << HALF)
            assert stored[start + place] == [row, column]
            seen.append(start + place)
    assert sorted(seen) == places.tolist()


def test_a_matrix_of_too_many_block_columns_is_refused():
    offsets, indices = torch.tensor([0, 1]), torch.tensor([1 << 15])
    with pytest.raises(ValueError, match="a matrix of 32769 block columns is too wide; use larger blocks"):
        plain_row_list(offsets, indices, places=torch.tensor([0]))


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
