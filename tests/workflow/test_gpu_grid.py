"""On a GPU machine `all` trains the grid and runs the benchmarks; finished points are not run again."""

from __future__ import annotations

import json

import pytest
import torch
from patience import PATIENCE
from workflow_place import grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TIMED = {"shapes": ["gpt2"], "sparsity": [0.95], "blocks": [64], "dtype": "bfloat16", "repeats": 10}
BENCHMARKS = [
    {**TIMED, "suite": "kernels", "tokens": [16], "settings": {"compiled": False, "seconds": 60}},
    {**TIMED, "suite": "training_mlp", "tokens": [512], "settings": {"seconds": 60}},
]


def test_all_runs_grid_and_benchmarks_and_then_only_what_is_missing(place):
    values = grid("gpu", benchmarks=BENCHMARKS)
    del values["grid"][1]
    values["training"]["default"] |= {"dtype": "bfloat16", "cuda_graphs": True}
    values["sparsify"] = {"update_every": 5, "execution": "sparse"}
    place.write(values)
    first = place.run("all", timeout=PATIENCE)
    assert first.returncode == 0, first.stdout + first.stderr
    results = place.folder / "results" / "gpu"
    records = {file: json.loads(file.read_text()) for file in (results / "records").iterdir()}
    assert len(records) == 2 + len(BENCHMARKS)
    assert {record["status"] for record in records.values()} == {"ok"}
    assert all(record["run"]["gpu"] for record in records.values())
    assert len(list((results / "jobs" / "mlflow").iterdir())) >= 1 + len(BENCHMARKS)

    before = {file: file.read_bytes() for file in records}
    kernels = next(file for file in records if file.name.startswith("kernels-"))
    kernels.unlink()
    again = place.run("all", timeout=PATIENCE)
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    assert kernels.is_file()
    assert {file: file.read_bytes() for file in records if file != kernels} == {
        file: content for file, content in before.items() if file != kernels
    }
    assert "vit-nano.digits" not in said
