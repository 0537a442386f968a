"""Every planned kernel compiles for Ampere and Hopper, spills nothing and reaches the tensor cores of its device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from blast_kernels.mlp_inference.heuristics import SHARED_MEMORY, KernelConfig, shared_memory

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "inference_compile_report.py"


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists(),
    reason="this Triton comes without cuobjdump",
)
def test_plans_compile_without_spills_in_loops_and_with_wgmma():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    run = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    reports = json.loads(run.stdout.splitlines()[-1])
    assert len(reports) > 20
    for report in reports:
        assert report["spills_in_loops"] == 0, report
        # With separate masks and tiles of 128×128 a gate lies beside an accumulator: registers move out once a tile
        # between its two loops.
        assert report["spills"] <= (80 if "128x128 untied" in report["case"] else 0), report
        assert report["shared"] <= SHARED_MEMORY, report
        if report["config"] and report["case"].startswith("sm_90"):
            gate = next(gate for gate in ("untied", "tied", "none") if gate in report["case"].split())
            config = KernelConfig(*report["config"])
            reckoned = shared_memory(config, gate, w_item=1 if "scaled" in report["case"] else 2)
            assert report["shared"] <= reckoned, report
            if config.kernel == "tiles" and "scaled" not in report["case"]:
                assert report["shared"] == reckoned, report
        if report["config"] and KernelConfig(*report["config"]).kernel != "stream":
            assert report["wgmma"], report


def test_the_kernel_in_gluon_is_a_valid_program_for_every_gate():
    """It has no interpreter, so this is all that can be asked of it quickly without a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    script = SCRIPT.with_name("persistent_program.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    # One warp fetches, two groups of warps multiply.
    for facts in json.loads(run.stdout.splitlines()[-1]).values():
        assert facts == {"parts": 1, "products": 2}
