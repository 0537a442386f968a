"""The table of break-even points. All numbers in these tables are invented."""

from __future__ import annotations

import json

import pytest
import torch
from blast_kernels.tables import break_even
from blast_kernels.tables.break_even import dense_ranges, dense_wins

GPU = "imaginary-gpu"
SHAPE = (8192, 2048)


def table(folder, *rows):
    fixed = {"block": [64, 64], "gate": "untied", "dtype": "bfloat16"}
    shapes = [shape or SHAPE for *_, shape in [(*row, None)[:3] for row in rows]]
    values = [
        fixed | {"in": width, "hidden": hidden, "tokens": row[0], "sparsity": row[1]}
        for row, (hidden, width) in zip(rows, shapes, strict=True)
    ]
    (folder / f"{GPU}.json").write_text(json.dumps({"gpu": GPU, "break_even": values}))


def wins(folder, tokens, sparsity, block=(64, 64), dtype=torch.bfloat16, shape=SHAPE):
    return dense_wins(tokens, dense_ranges(sparsity, block, "untied", shape, dtype, GPU, folder))


def test_dense_runs_below_the_break_even_of_the_nearest_number_of_tokens(tmp_path):
    table(tmp_path, (2048, 0.7), (16, 0.4))
    assert wins(tmp_path, 16, 0.39)
    assert not wins(tmp_path, 16, 0.41)
    # By ratio, 181 is as far from 16 as from 2048.
    assert not wins(tmp_path, 181, 0.5)
    assert wins(tmp_path, 182, 0.5)
    assert wins(tmp_path, 100_000, 0.69)
    assert not wins(tmp_path, 100_000, 0.7)


def test_the_shape_with_the_nearest_number_of_weights_decides(tmp_path):
    table(tmp_path, (16, 0.4, (3072, 768)), (2048, 0.5, (3072, 768)), (16, 0.7, (53248, 16384)))
    assert not wins(tmp_path, 16, 0.45, shape=(5120, 1280))
    assert wins(tmp_path, 16, 0.45, shape=(28672, 8192))
    # The shape is chosen before the number of tokens.
    assert wins(tmp_path, 4096, 0.6, shape=(28672, 8192))


def test_a_block_or_dtype_that_the_table_lacks_uses_the_heuristic(tmp_path):
    table(tmp_path, (16, 0.99))
    assert wins(tmp_path, 16, 0.95)
    assert not wins(tmp_path, 16, 0.95, block=(128, 128))
    assert not wins(tmp_path, 16, 0.95, block=(32, 32))
    assert not wins(tmp_path, 16, 0.95, dtype=torch.float16)


@pytest.mark.parametrize("block", [(16, 16), (32, 128), (64, 64), (128, 128)])
def test_the_heuristic_runs_very_sparse_mlps_sparse_and_nearly_full_ones_dense(tmp_path, block):
    assert not wins(tmp_path, 64, 0.95, block)
    assert wins(tmp_path, 64, 0.3, block)


def test_without_a_gpu_dense_is_never_chosen():
    assert break_even.gpu_name(torch.device("cpu")) is None
    assert not dense_wins(64, dense_ranges(0.0, (16, 16), "none", SHAPE, torch.float32, None))


def test_a_damaged_table_is_named_in_the_error(tmp_path):
    (tmp_path / f"{GPU}.json").write_text('{"break_even": [{"tokens": 16}]}')
    with pytest.raises(ValueError, match=rf"{GPU}.json: a row of break_even lacks one of block"):
        wins(tmp_path, 16, 0.5)


def test_every_table_of_the_repository_can_be_read():
    for file in break_even.TUNED.glob("*.json"):
        assert break_even.read_table(file.stem)
