"""The table of layers over several GPUs, from invented rows: dense beside ours, and what is projected says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from fake_kernels import GPU  # noqa: E402
from fake_records import GRID, HARDWARE, run_part  # noqa: E402

import paper_figures  # noqa: E402
from blast.benchmark.settings import settings_of  # noqa: E402
from blast.benchmark.tensor_parallel import _entry, _missing  # noqa: E402
from blast.experiment.plan.point import Point  # noqa: E402
from blast.experiment.records.record import make_record  # noqa: E402
from blast.experiment.records.rows import record_rows  # noqa: E402
from blast.experiment.records.table import as_table  # noqa: E402

SETTINGS = {"tokens": [8], "dtype": "bfloat16", "repeats": 20, **settings_of("tensor_parallel")}


def table_of(hardware=GPU):
    """Two GPUs measured, four missing, sixteen projected."""

    def entries(provider, layer, joules, read):
        yield _entry("layer_latency", provider, "ms", layer, 8, 2, SETTINGS, {})
        yield _entry("energy", provider, "J/token", joules, 8, 2, SETTINGS, {})
        yield _entry("read_bytes", provider, "bytes", read, 8, 2, SETTINGS, {})
        yield _missing("layer_latency", provider, 4, "it needs 4 GPUs and this machine has 2", SETTINGS)
        yield _entry("layer_latency", provider, "ms", layer / 4, 8, 16, SETTINGS, {"projected": True})
        yield _entry("latency", provider, "ms", 40 * layer, 8, 16, SETTINGS, {"projected": True})

    metrics = [*entries("dense_eager", 0.4, 0.02, 6e8), *entries("ours", 0.1, 0.005, 1e8)]
    metrics.append(_entry("all_reduce_latency", "nccl", "ms", 0.012, 8, 2, SETTINGS, {"bytes": 1}))
    point = Point(
        id="tensor_parallel-llama-3.1-70b.bfloat16.s95.b128.seed0", grid=GRID, stage="benchmark",
        architecture="llama-3.1-70b", method="blast", sparsity=0.95, block=(128, 128),
        benchmark=SETTINGS | {"suite": "tensor_parallel"},
    )  # fmt: skip
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": 0.95, "achieved": 0.95, "matrices": {}}}
    run = run_part(hardware, point.id, gpu="Imaginary")
    return as_table(record_rows(make_record(point, status="ok", result=result, run=run), None))


def test_each_row_has_dense_beside_ours_and_says_how_it_is_known():
    frame = paper_figures.load("tensor_parallel").rows(table_of())
    found = {(row.of, row.gpus): row for row in frame.itertuples(index=False)}
    assert found.keys() == {("layer", 2), ("layer", 4), ("layer", 16), ("model", 16)}
    measured = found["layer", 2]
    assert (measured.dense_ms, measured.ours_ms, measured.known) == (0.4, 0.1, "measured")
    assert measured.speed_up == pytest.approx(4)
    assert (measured.dense_joules, measured.ours_joules) == (0.02, 0.005)
    assert (measured.dense_bytes, measured.ours_bytes, measured.all_reduce_ms) == (6e8, 1e8, 0.012)
    assert found["layer", 4].known == "not run"
    assert "this machine has 2" in found["layer", 4].note
    assert found["layer", 16].known == found["model", 16].known == "projected"
    assert found["model", 16].ours_ms == 4.0


def test_the_printed_table_names_what_is_projected_and_what_was_not_run():
    module = paper_figures.load("tensor_parallel")
    frame = module.rows(table_of())
    shown = module.printed(frame)
    assert shown["known"].tolist().count("projected") == 2
    assert any("not run: it needs 4 GPUs" in text for text in shown["known"])
    assert "4.00×" in shown["speed-up"].tolist()
    assert any("Projected: " in remark for remark in module.remarks(frame))


def test_a_cpu_shows_nothing_here():
    frame = paper_figures.load("tensor_parallel").rows(table_of(HARDWARE))
    assert frame["known"].tolist() == ["not run"]
