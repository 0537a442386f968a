"""The device of the kernel tests, and output buffers filled with NaN."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills every new buffer with NaN, so that a test fails if a kernel leaves an element unwritten."""
    plain = torch.empty
    # torch remembers the functions that make tensors when it is first asked for a device. It must see the real
    # `torch.empty`, else `with torch.device("meta")` of a later test would allocate.
    with torch.device("meta"):
        plain(0)

    def poisoned(*size, **options):
        out = plain(*size, **options)
        with torch.no_grad():  # With activation checkpointing the tensor is a leaf.
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-1)

    monkeypatch.setattr(torch, "empty", poisoned)
