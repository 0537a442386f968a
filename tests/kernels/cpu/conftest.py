"""Each way that a CPU computes: the C++ kernels of every kind of processor that this one can stand for, and PyTorch."""

from __future__ import annotations

import shutil

import pytest
from blast_kernels.cpu import build, launch

CAN_BUILD = bool(build.levels()) and any(shutil.which(name) for name in build.COMPILERS)
LEVELS = build.levels() if CAN_BUILD else []


@pytest.fixture(params=[*LEVELS, "plain"])
def way(request, monkeypatch) -> str:
    """`avx512_bf16`, `avx512`, `avx2` or `plain`; the operators compute in this way."""
    if request.param == "plain":
        found = None
    else:
        monkeypatch.setattr(build, "levels", lambda: [request.param])
        found = launch.open_kernels()
        assert found is not None
    monkeypatch.setattr(launch, "_loaded", [found])
    return request.param
