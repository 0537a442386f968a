"""Configs for GPUs other than the measured Hopper: they fit its shared memory, and the kernels compile for it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from blast_kernels.common.gpu_limits import HOPPER, KNOWN, gpu_limits
from blast_kernels.mlp_inference import tuned_configs
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.other_gpus import fitted, memory_of
from blast_kernels.mlp_inference.tuned_configs import config_without_table

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "other_gpus_compile_report.py"
OTHERS = [name for name in KNOWN if name != "H100"]
SIDES = (16, 32, 64, 128)


def config_on(monkeypatch, name: str, tokens: int, rows: int, sides: tuple[int, int], gate: str, dtype=torch.bfloat16):
    monkeypatch.setattr(tuned_configs, "gpu_limits", lambda device: KNOWN[name])
    return config_without_table(tokens, rows, 8.0, *sides, gate, dtype, torch.device("cuda"))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_every_config_of_the_rules_fits_the_block_and_the_shared_memory(monkeypatch, name, dtype):
    limits, items = KNOWN[name], {torch.bfloat16: (2, 2), torch.float32: (4, 4), torch.float8_e4m3fn: (2, 1)}[dtype]
    cases = itertools.product((1, 16, 33, 128, 400, 8192), (16, 128, 600), SIDES, SIDES, ("none", "untied", "tied"))
    for tokens, rows, b_out, b_in, gate in cases:
        config = config_on(monkeypatch, name, tokens, rows, (b_out, b_in), gate, dtype)
        assert memory_of(config, gate, limits, *items) <= limits.shared_memory, (
            tokens,
            rows,
            b_out,
            b_in,
            gate,
            config,
        )
        assert b_out % config.slice == 0
        whole = config.k % b_in if config.kernel == "stream" else b_in % config.k
        assert whole == 0, config
        # Triton's tl.dot takes no side below 16.
        assert min(config.tile, config.slice, config.k) >= 16, config


@pytest.mark.parametrize("name", OTHERS)
def test_no_config_needs_what_only_a_hopper_has(monkeypatch, name):
    for tokens, rows, gate in itertools.product((1, 128, 8192, 100_000), (16, 600), ("none", "untied", "tied")):
        config = config_on(monkeypatch, name, tokens, rows, (128, 128), gate)
        assert config.kernel != "persistent"
        # `tiles` needs the tensor memory accelerator.
        assert config.kernel == "stream" or KNOWN[name].has_tma


def test_on_a_hopper_a_config_is_left_as_it_is():
    config = KernelConfig("persistent", 256, 128, 64, 3, 4, False, 8)
    assert fitted(config, 128, "untied", HOPPER) is config
    assert gpu_limits(torch.device("cpu")) == HOPPER


def test_a_device_is_asked_once_for_its_limits(monkeypatch):
    # To ask takes longer than a launch.
    asked: list[torch.device] = []
    properties = SimpleNamespace(shared_memory_per_block_optin=5, multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: asked.append(device) or properties)
    invented = torch.device("cuda", 77)
    assert [gpu_limits(invented) for _ in range(2)] == [((9, 9), 7, 5)] * 2
    assert asked == [invented]


def test_a_config_that_is_too_large_loses_stages_first_then_columns_then_tokens():
    deep = KernelConfig("tiles", 32, 64, 128, 6, 4)
    small = KNOWN["RTX 5090"]
    assert fitted(deep, 128, "none", small) == deep._replace(stages=5)
    tiny = small._replace(shared_memory=20_000)
    found = fitted(deep, 128, "none", tiny)
    assert (found.stages, found.k, found.tile) == (2, 64, 32)
    assert memory_of(found, "none", tiny) <= tiny.shared_memory


def report(*arguments: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    run = subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists(),
    reason="this Triton comes without cuobjdump",
)
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_every_gpu_and_take_no_more_memory_than_it_has(which):
    reports = report(which)
    assert {entry["gpu"] for entry in reports} == set(OTHERS)
    for entry in reports:
        limits = KNOWN[entry["gpu"]]
        assert entry["shared"] <= limits.shared_memory, entry
        # For 12.x, Triton 3.6 moves up to four registers out of a loop; 3.9 moves none.
        assert entry["spills_in_loops"] <= (4 if limits.capability[0] == 12 else 0), entry
        if entry["config"]:
            assert entry["shared"] <= memory_of(KernelConfig(*entry["config"]), entry["gate"], limits), entry
