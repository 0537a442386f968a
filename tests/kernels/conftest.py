"""Without a GPU the kernels run through Triton's interpreter, which has to be asked for before Triton is imported."""

from __future__ import annotations

import os
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "triton was imported before tests/kernels could ask for its interpreter; run with TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fresh buffer of a kernel starts as NaN, so that an element nobody writes is seen."""
    plain = torch.empty
    # torch remembers which functions make tensors; of those patched here it would forget the real ones, and a later
    # test's `with torch.device("meta")` would allocate.
    with torch.device("meta"):
        plain(0)

    def poisoned(*size, **options):
        out = plain(*size, **options)
        with torch.no_grad():  # activation checkpointing makes an empty leaf
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-1)

    monkeypatch.setattr(torch, "empty", poisoned)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ON_GPU:
        return
    reason = "needs a CUDA device, and torch.cuda.is_available() is false here"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
