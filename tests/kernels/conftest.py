"""The device that kernels run on, and fresh memory that is poisoned."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
