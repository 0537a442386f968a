"""The training kernels compile for Ampere and Hopper, spill nothing and use Hopper's tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "training_compile_report.py"
SHARED_MEMORY_OF_A_PROGRAM = {"sm_90": 232_448, "sm_80": 166_912}


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists(),
    reason="this Triton has no cuobjdump",
)
def test_training_kernels_compile_without_spills_and_with_wgmma():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    run = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    reports = json.loads(run.stdout.splitlines()[-1])
    assert len(reports) > 20
    for report in reports:
        assert report["spills"] == 0, report
        assert report["shared"] <= SHARED_MEMORY_OF_A_PROGRAM[report["case"].split()[0]], report
        assert report["wgmma"] == report["tensor_cores"], report
