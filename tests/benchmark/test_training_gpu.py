"""The suites `training_mlp` and `training_step` on a real GPU; skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

from blast.benchmark import training_mlp, training_step
from blast.benchmark.providers.peers import missing_package
from blast.benchmark.settings import settings_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MLP = {**settings_of("training_mlp"), "dtype": "bfloat16", "repeats": 10, "tokens": [512], "seconds": 120}
STEP = {**settings_of("training_step"), "dtype": "bfloat16", "repeats": 5, "tokens": [2048], "seconds": 300}


@pytest.mark.parametrize(("architecture", "block"), [("llama-3.2-1b", 128), ("gpt2-xl", 64), ("vit-b-16", 64)])
def test_ours_is_correct_and_timed_in_a_graph(architecture, block):
    settings = MLP | {"tied": [False, True], "masks": ["uniform", "every_hidden_live"]}
    metrics = training_mlp.measure(architecture, 0.9, (block, block), 0, settings)
    ours = [entry for entry in metrics if entry["provider"] == "ours"]
    assert len(ours) == (4 if architecture.startswith("llama") else 2)
    assert all(entry["setting"]["error"] < 1.2e-2 for entry in ours)
    timed = [entry for entry in metrics if entry["value"] is not None]
    assert {"ours", "dense_eager", "dense_compiled"} <= {entry["provider"] for entry in timed}
    assert all(entry["setting"].get("graph", True) for entry in timed)


def test_the_gradients_of_stk_are_correct_and_timed():
    if cause := missing_package("stk"):
        pytest.skip(cause)
    metrics = training_mlp.measure("llama-3.2-1b", 0.9, (128, 128), 0, MLP | {"peers": ["stk"]})
    (entry,) = [entry for entry in metrics if entry["provider"] == "stk"]
    assert entry["setting"].get("cause") is None
    assert entry["setting"]["error"] < 1.2e-2


@pytest.mark.parametrize(("architecture", "block"), [("gpt2", 64), ("vit-b-16", 64), ("llama-3.2-1b", 128)])
def test_whole_steps_are_timed_and_sparse_steps_take_less_memory(architecture, block):
    metrics = training_step.measure(architecture, 0.95, (block, block), 0, STEP)
    found = {(entry["provider"], entry["metric"]): entry["value"] for entry in metrics}
    for provider in ("dense_compiled", "ours", "masked_dense"):
        assert found[provider, "step_time"] > 0
        stored = ("parameter_bytes", "gradient_bytes", "optimizer_bytes")
        assert found[provider, "peak_bytes"] > sum(found[provider, metric] for metric in stored)
    for metric in ("peak_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes"):
        assert found["ours", metric] < found["dense_compiled", metric]
    parts = sum(found["dense_compiled", f"time_{part}"] for part in ("attention", "mlp", "optimizer"))
    assert 0.3 < parts / found["dense_compiled", "step_time"] < 1.2


def test_the_largest_batch_of_ours_is_at_least_that_of_dense():
    metrics = training_step.measure("gpt2", 0.95, (64, 64), 0, STEP | {"largest_batch": True, "seconds": 200})
    found = {entry["provider"]: entry["value"] for entry in metrics}
    assert found["ours"] >= found["dense_compiled"] > 2
