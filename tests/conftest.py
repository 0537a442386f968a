"""Settings that all tests share: one thread, no network of MLflow's own, and Triton's interpreter without a GPU."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    # Triton reads it when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is none."""
    if ON_GPU:
        return
    reason = "needs a CUDA device, and torch.cuda.is_available() is false here"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
