"""From which sparsity on training runs sparse: measured rows first, a heuristic without them."""

from __future__ import annotations

import json

import pytest
import torch
from blast_kernels.tables.break_even import read_part

from blast.block_sparse.blocks import BlockShape
from blast.sparsity.execution import break_even
from blast.sparsity.execution.break_even import KEYS, NEVER, training_break_even

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(break_even, "gpu_name", lambda device: None if device.type == "cpu" else "some-gpu")


def write(folder, rows) -> None:
    (folder / "some-gpu.json").write_text(json.dumps({"gpu": "some-gpu", "break_even": [], "train_break_even": rows}))


def test_the_measured_row_of_the_nearest_shape_counts(tmp_path):
    row = {"block": [64, 64], "gate": "none"}
    small = {**row, "in": 1024, "hidden": 4096, "sparsity": 0.7}
    write(tmp_path, [small, {**row, "in": 8192, "hidden": 32768, "sparsity": 0.4}])
    block = BlockShape(64, 64)
    assert training_break_even(CUDA, block, "none", (6400, 1600), tmp_path) == 0.7
    assert training_break_even(CUDA, block, "none", (20000, 5000), tmp_path) == 0.4
    # Another gate or block was not measured.
    assert training_break_even(CUDA, block, "tied", (6400, 1600), tmp_path) == break_even.HEURISTIC[64]
    assert training_break_even(CUDA, BlockShape(32, 128), "none", (6400, 1600), tmp_path) == break_even.HEURISTIC[32]


def test_without_a_table_small_blocks_need_more_sparsity_and_tiny_ones_never_switch(tmp_path):
    limits = [training_break_even(CUDA, BlockShape(b, b), "none", (512, 128), tmp_path) for b in (8, 16, 32, 64, 128)]
    assert limits[0] == NEVER
    assert limits == sorted(limits, reverse=True)
    assert len(set(limits)) == 5


def test_a_cpu_never_switches_by_itself(tmp_path):
    assert training_break_even(torch.device("cpu"), BlockShape(64, 64), "none", (512, 128), tmp_path) == NEVER


@pytest.mark.parametrize(
    "content", ["{", '{"train_break_even": [{"block": [64, 64]}]}', '{"train_break_even": 3}', "[]"]
)
def test_a_damaged_table_is_one_sentence(tmp_path, content):
    (tmp_path / "some-gpu.json").write_text(content)
    with pytest.raises(ValueError, match=r"some-gpu.json: .*(measure it again or delete it)"):
        read_part("some-gpu", "train_break_even", KEYS, tmp_path)
