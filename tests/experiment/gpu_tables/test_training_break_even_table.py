"""Break-even points of training are made from records; every time in them is invented."""

from __future__ import annotations

import pytest
import torch

from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.experiment.gpu_tables.break_even import training_rows, write_training_table
from blast.sparsity.execution import break_even


def record(
    sparsity: float, ours: float, hidden: int = 1024, live: float | None = None, hardware: str = "imaginary-gpu"
):
    setting = {"mask": "uniform", "hidden": 256, "ffn": hidden}
    entry = {"metric": "latency", "tokens": 8192, "dtype": "bfloat16", "setting": setting, "tied": False}
    metrics = [
        entry | {"provider": "ours", "value": ours},
        entry | {"provider": "dense_compiled", "value": 1.0},
        entry | {"provider": "dense_eager", "value": 5.0},
    ]
    if live is not None:
        metrics.append(metrics[0] | {"value": live, "setting": setting | {"mask": "every_hidden_live"}})
    point = {"architecture": "x", "sparsity": sparsity, "block": [64, 64], "benchmark": {"suite": "training_mlp"}}
    run = {"hardware": hardware, "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00", "versions": {}}
    return {"status": "ok", "point": point, "result": {"metrics": metrics}, "run": run}


def limits(*records):
    return [row["sparsity"] for row in training_rows(records)]


def test_it_is_the_lowest_sparsity_from_which_ours_always_won_over_compiled_dense():
    assert limits(record(0.5, 1.2), record(0.7, 0.9), record(0.9, 0.5)) == [0.7]
    assert limits(record(0.5, 0.9), record(0.7, 1.1), record(0.9, 0.5)) == [0.9]
    assert limits(record(0.9, 1.5)) == [1.0]
    # Never lost: twice as fast with a tenth of the blocks, as fast with a fifth of them.
    assert limits(record(0.9, 0.5)) == [0.8]


def test_the_slowest_mask_counts():
    assert limits(record(0.7, 0.5, live=1.1), record(0.9, 0.2, live=0.8)) == [0.9]


def test_the_sparsifier_reads_the_row_of_the_nearest_shape(tmp_path, monkeypatch):
    records = [record(0.5, 1.2), record(0.7, 0.9), record(0.5, 0.9, hidden=16384), record(0.4, 1.1, hidden=16384)]
    write_training_table(records, tmp_path)
    monkeypatch.setattr(break_even, "gpu_name", lambda device: "imaginary-gpu")
    found = [
        break_even.training_break_even(torch.device("cpu"), BlockShape(64, 64), "untied", (hidden, 256), tmp_path)
        for hidden in (1000, 20_000)
    ]
    assert found == [0.7, 0.5]


def test_records_of_two_gpus_are_rejected(tmp_path):
    with pytest.raises(BlastError, match="they come from imaginary-gpu, other-gpu"):
        write_training_table([record(0.5, 1.2), record(0.7, 0.9, hardware="other-gpu")], tmp_path)
