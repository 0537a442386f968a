"""Break-even points of inference are made from records; every time in them is invented."""

from __future__ import annotations

import pytest

from blast.errors import BlastError
from blast.experiment.gpu_tables.break_even import inference_rows, write_inference_table

SIZES = {
    "gpt2": {"hidden": 768, "ffn": 3072},
    "vit-b-16": {"hidden": 768, "ffn": 3072},
    "gpt2-xl": {"hidden": 1600, "ffn": 6400},
}


def record(sparsity: float, ours: float, shape: str = "gpt2", hardware: str = "imaginary-gpu", status: str = "ok"):
    entry = {"metric": "latency", "tokens": 16, "dtype": "bfloat16", "setting": SIZES[shape] | {"mask": "uniform"}}
    metrics = [
        entry | {"provider": "ours", "value": ours, "tied": False},
        entry | {"provider": "ours_skipped", "value": ours / 100, "tied": False},
        entry | {"provider": "dense_eager", "value": 1.0},
    ]
    point = {"architecture": shape, "sparsity": sparsity, "block": [64, 64], "benchmark": {"suite": "kernels"}}
    run = {"hardware": hardware, "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00", "versions": {}}
    return {"status": status, "point": point, "result": {"metrics": metrics}, "run": run}


def limit(*records) -> float:
    (row,) = inference_rows(records)
    assert row["block"] == [64, 64]
    assert (row["gate"], row["dtype"], row["tokens"]) == ("untied", "bfloat16", 16)
    return row["sparsity"]


def test_the_break_even_is_the_lowest_sparsity_from_which_ours_always_won():
    assert limit(record(0.5, 1.2), record(0.7, 0.9), record(0.9, 0.5)) == 0.7
    assert limit(record(0.5, 0.9), record(0.7, 1.1), record(0.9, 0.5)) == 0.9
    assert limit(record(0.9, 1.5)) == 1.0


def test_where_ours_always_won_the_break_even_is_extrapolated_in_proportion_to_live_blocks():
    # Twice as fast with a tenth of the blocks: as fast with a fifth of them.
    assert limit(record(0.9, 0.5)) == 0.8
    assert limit(record(0.8, 0.4), record(0.9, 0.1)) == 0.5
    assert limit(record(0.8, 0.4), record(0.8, 0.8, "vit-b-16")) == 0.75
    assert limit(record(0.5, 0.1)) == 0.0


def test_shapes_have_rows_of_their_own():
    rows = inference_rows([record(0.7, 0.9), record(0.7, 1.1, "gpt2-xl"), record(0.9, 0.5, "gpt2-xl")])
    assert [(row["in"], row["hidden"], row["sparsity"]) for row in rows] == [(768, 3072, 0.6667), (1600, 6400, 0.9)]


def test_the_slowest_of_the_architectures_that_share_a_shape_counts():
    assert limit(record(0.7, 0.9), record(0.9, 0.5), record(0.7, 1.1, "vit-b-16"), record(0.9, 0.6, "vit-b-16")) == 0.9


def test_the_table_that_is_written_is_read_by_the_kernels(tmp_path):
    import torch
    from blast_kernels.tables.break_even import dense_ranges, dense_wins

    file = write_inference_table([record(0.5, 1.2), record(0.7, 0.9)], tmp_path)
    assert file.name == "imaginary-gpu.json"
    ranges = [
        dense_ranges(s, (64, 64), "untied", (3072, 768), torch.bfloat16, "imaginary-gpu", tmp_path) for s in (0.6, 0.8)
    ]
    assert [dense_wins(16, found) for found in ranges] == [True, False]


def test_records_of_two_gpus_or_of_none_are_rejected(tmp_path):
    with pytest.raises(BlastError, match="they come from imaginary-gpu, other-gpu"):
        write_inference_table([record(0.5, 1.2), record(0.7, 0.9, hardware="other-gpu")], tmp_path)
    with pytest.raises(BlastError, match="they are missing"):
        write_inference_table([record(0.5, 1.2, status="failed")], tmp_path)
