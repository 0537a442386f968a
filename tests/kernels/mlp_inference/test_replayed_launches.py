"""A replay gives the launcher of a compiled kernel exactly what Triton itself gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from blast_kernels.common import eager
from blast_kernels.mlp_inference import launch as launches
from blast_kernels.mlp_inference import mlp
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.ops import run_mlp
from blast_kernels.mlp_inference.replay import launch
from inference_cases import gate_up_of, mask_of
from torch.utils.flop_counter import FlopCounterMode

SUPPORT = Path(__file__).resolve().parents[2] / "support"


@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists(), reason="this Triton comes without ptxas"
)
def test_a_replay_launches_what_an_ordinary_call_launches():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    script = SUPPORT / "replayed_launches.py"
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    cases = json.loads(run.stdout.splitlines()[-1])
    assert len(cases) == 9
    for case in cases:
        assert case["replay"] == case["ordinary"], case["name"]
        assert case["same_shape"], case["name"]
        first, second = (json.dumps(launched) for launched in case["replay"])
        # The second kernel reads the hidden activations that the first one writes.
        assert '"x"' in first, case["name"]
        assert '"new' in first, case["name"]
        assert '"x"' not in second or "stream" in second, case["name"]
        assert all(case["refused"]), case["name"]


def test_a_launch_without_a_handle_cannot_be_repeated():
    """So it is in Triton's interpreter, and would be in a version of Triton that has other names."""

    class Kernel:
        arg_names = ("x", "SIZE")
        given: tuple = ()

        def __init__(self, compiled):
            self.compiled = compiled

        def __getitem__(self, grid):
            def run(*arguments, **constants):
                self.given = grid, arguments, constants
                return self.compiled

            return run

    handle = SimpleNamespace(run=print, function=1, packed_metadata=2)
    kernel = Kernel(handle)
    made = launch(kernel, (3,), (5,), {"SIZE": 8, "num_warps": 4})
    assert kernel.given == ((3,), (5,), {"SIZE": 8, "num_warps": 4})
    assert made is not None
    assert (made.grid, made.arguments) == ((3, 1, 1), (5, 8))
    for name in ("run", "function", "packed_metadata"):
        parts = {key: value for key, value in vars(handle).items() if key != name}
        assert launch(Kernel(SimpleNamespace(**parts)), (3,), (5,), {"SIZE": 8}) is None
    assert launch(Kernel(None), (3,), (5,), {"SIZE": 8}) is None
    assert launch(kernel, (3,), (5,), {}) is None


def test_plain_inference_is_told_from_calls_that_somebody_watches():
    x = torch.ones(2, 3)
    assert not eager.is_plain(x)
    with torch.no_grad():
        assert eager.is_plain(x)
        assert not eager.is_plain(torch.nn.Parameter(x))
        with FlopCounterMode(display=False):
            assert not eager.is_plain(x)
        with torch.profiler.profile():
            assert not eager.is_plain(x)
        seen = []
        torch.vmap(lambda row: seen.append(eager.is_plain(row)) or row)(x)
        torch.jit.trace(lambda row: seen.append(eager.is_plain(row)) or row, x, check_trace=False)
        assert seen[:2] == [False, False]
    with torch.inference_mode():
        assert eager.is_plain(torch.ones(2, 3))


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_functorch", "_is_tracing"])
def test_a_torch_that_cannot_be_asked_gets_the_operator(name, monkeypatch):
    assert eager.observers() is not None
    with monkeypatch.context() as context, torch.no_grad():
        context.delattr(torch._C, name)
        found = eager.observers()
        context.undo()
        context.setattr(eager, "_OBSERVERS", found)
        assert found is None
        assert not eager.is_plain(torch.ones(2, 3))


def test_off_a_gpu_a_call_gives_no_replay():
    blocks, rows = torch.ones(1, 16, 16), torch.tensor([[0, 0, 0, 1, *[0] * 28]], dtype=torch.int32)
    operands = (blocks, None, rows, None, blocks, rows, None, 16, 16, "none", "none")
    out, replay = run_mlp(torch.ones(2, 16), *operands, record=True)
    assert replay is None
    assert torch.equal(out, torch.full((2, 16), 256.0))


@pytest.mark.parametrize(("rows", "waits"), [(1, "late"), (0, "never")])
def test_a_kernel_starts_early_only_behind_one_that_says_when(rows, waits, monkeypatch):
    """Without a live hidden block the second kernel comes first, and the one before it is a stranger."""
    chains = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(mlp, "product", lambda *_, chain, **__: chains.append(chain))
    blocks, row_list = torch.ones(1, 16, 16), torch.tensor([[0, 0, 0, 1, *[0] * 28]], dtype=torch.int32)
    mlp.launch_mlp(
        torch.ones(2, 16), blocks, None, row_list[:rows], None, blocks, row_list, None, 16, 16, "none", "none"
    )
    assert [chain.waits for chain in chains] == ["first" if rows else "never", waits]
    assert chains[0].leads == bool(rows)


@pytest.mark.parametrize(("gate", "slice_", "columns"), [("none", 128, 64), ("tied", 64, 64), ("untied", 128, 128)])
def test_a_persistent_kernel_holds_the_gate_of_two_masks_in_the_buffer_of_its_result(
    gate, slice_, columns, monkeypatch
):
    """Otherwise the buffer has half the columns of a block, and the pipeline gets the memory."""
    boxes = []
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(launches, "launch", lambda kernel, grid, arguments, _: boxes.append(arguments[3].block_shape))
    gate_up = gate_up_of(gate, [mask_of("full", 2, 2)] * 2, 128, 128, torch.float16)
    x, y = torch.ones(300, 256).half(), torch.empty(300, 256).half()
    config = KernelConfig("persistent", 256, slice_, 64, 3, 4, False, 2)
    launches.product(x, gate_up.values, gate_up.row_list, None, y, "silu", gate, config, up=gate_up.up)
    assert boxes == [[128, columns]]
