"""The suite `kernel_plans` on a real GPU; skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

from blast.benchmark import kernel_plans
from blast.benchmark.settings import settings_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SETTINGS = {**settings_of("kernel_plans"), "dtype": "bfloat16", "repeats": 5}


@pytest.mark.parametrize(("architecture", "block"), [("llama-3.2-1b", (128, 128)), ("gpt2", (64, 64))])
def test_every_config_runs_is_correct_and_is_timed(architecture, block):
    metrics = kernel_plans.measure(architecture, 0.9, block, 0, SETTINGS | {"tokens": [16, 600], "tied": [False, True]})
    timed = [entry for entry in metrics if entry["metric"] == "latency"]
    failed = [(entry["setting"]["plan"], entry["setting"]["cause"]) for entry in timed if entry["value"] is None]
    assert len(timed) > 40
    assert not failed
    costs = [entry["value"] for entry in metrics if entry["metric"] == "pick_cost"]
    assert all(cost >= 0 for cost in costs)
