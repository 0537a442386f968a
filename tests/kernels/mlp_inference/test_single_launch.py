"""A whole MLP in one launch: its two halves in the interpreter, the whole on a GPU, and its machine code for Hopper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from blast_kernels.common.gpu_limits import HOPPER
from blast_kernels.mlp_inference import reference, single_launch
from blast_kernels.mlp_inference.row_lists import drop_columns, live_hidden_rows, plain_row_list
from inference_cases import gate_up_of, mask_of, matrix_of, relative_error

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "single_launch_compile_report.py"
ROWS, COLS = 4, 3


def counters_on(device: str) -> torch.Tensor:
    return torch.zeros(single_launch.COUNTERS, dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("gate", ["none", "untied", "tied"])
@pytest.mark.parametrize(("block", "tokens", "pattern"), [(64, 1, "uniform"), (128, 16, "skewed_rows"), (32, 5, "full"),
                                                          (64, 7, "empty_rows")])  # fmt: skip
def test_one_launch_equals_two_reference_products(gate, block, tokens, pattern, dtype, device):
    masks = [mask_of(pattern, ROWS, COLS, seed) for seed in ((0, 1) if gate == "untied" else (0,))]
    front = gate_up_of(gate, masks, block, block, dtype, device)
    down = matrix_of(mask_of("uniform", COLS, ROWS, 5, 0.5), block, block, dtype, device, 5)
    down_list = plain_row_list(*down.index)
    bias, down_bias = (torch.randn(width * block).to(device, dtype) for width in (ROWS, COLS))
    bias = bias if gate == "none" else None
    x = torch.randn(tokens, COLS * block).to(device, dtype)
    counters, width = counters_on(device), ROWS * block
    out = single_launch.mlp(
        x, front.values, front.up, front.row_list, bias, down.values, down_list, down_bias, width, "silu", gate,
        counters,
    )  # fmt: skip
    wide = [None if part is None else part.float() for part in (bias, front.up)]
    hidden = reference.product(
        x.float(), front.values.float(), front.row_list, wide[0], width, "silu", gate, up=wide[1]
    )  # fmt: skip
    expected = reference.product(
        hidden.to(dtype).float(), down.values.float(), down_list, down_bias.float(), COLS * block, "none", "none"
    )  # fmt: skip
    assert relative_error(out, expected) < (2e-3 if dtype == torch.float16 else 2e-6)
    assert counters.tolist() == [0, 0]


def test_dead_hidden_blocks_may_be_left_out(device):
    block, dtype = 64, torch.float32
    gate, up = (matrix_of(mask_of("uniform", 6, 3, seed, 0.4), block, block, dtype, device, seed) for seed in (0, 1))
    down = matrix_of(mask_of("uniform", 3, 6, 2, 0.5), block, block, dtype, device, 2)
    live = live_hidden_rows(gate.index[0], up.index[0], down.index[1])
    assert 0 < int(live.sum()) < 6
    offsets, indices, kept = drop_columns(*down.index, live)
    masks = [mask_of("uniform", 6, 3, seed, 0.4) for seed in (0, 1)]
    front = gate_up_of("untied", masks, block, block, dtype, device, live.cpu())
    down_list = plain_row_list(offsets, indices, places=kept)
    x = torch.randn(3, 3 * block, device=device)
    arguments = (x, front.values, front.up, front.row_list, None, down.values, down_list, None, 6 * block, "silu")
    out = single_launch.mlp(*arguments, "untied", counters_on(device), down_blocks=len(kept))
    hidden = torch.nn.functional.silu(x @ gate.dense.t()) * (x @ up.dense.t())
    assert relative_error(out, hidden @ down.dense.t()) < 1e-5


@pytest.mark.parametrize(
    ("tokens", "rows", "said"),
    [(17, COLS, "up to 16 tokens, not 17"), (1, 200, "400 programs would wait, and there are 132 multiprocessors")],
)
def test_what_one_launch_cannot_run_is_refused(tokens, rows, said):
    front = gate_up_of("none", [mask_of("uniform", ROWS, COLS)], 128, 128, torch.float16)
    down = matrix_of(mask_of("uniform", rows, ROWS), 128, 128, torch.float16)
    x = torch.randn(tokens, COLS * 128).half()
    lists = (front.row_list, None, down.values, plain_row_list(*down.index), None)
    with pytest.raises(ValueError, match=f"{said}.*block_sparse_mlp instead"):
        single_launch.mlp(x, front.values, None, *lists, ROWS * 128, "silu", "none", counters_on("cpu"))


@pytest.mark.gpu
def test_equal_inputs_give_equal_bits_many_times(device):
    front = gate_up_of("tied", [mask_of("uniform", 64, 16)], 128, 128, torch.bfloat16, device)
    down = matrix_of(mask_of("uniform", 16, 64, 1), 128, 128, torch.bfloat16, device)
    x, counters = torch.randn(16, 16 * 128).to(device, torch.bfloat16), counters_on(device)
    lists = (front.row_list, None, down.values, plain_row_list(*down.index), None)
    first, *others = (
        single_launch.mlp(x, front.values, front.up, *lists, 64 * 128, "silu", "tied", counters) for _ in range(200)
    )
    assert all(torch.equal(first, other) for other in others)
    assert counters.tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists(),
    reason="this Triton comes without cuobjdump",
)
def test_one_launch_compiles_for_hopper_without_spills_and_two_programs_fit_a_multiprocessor():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    run = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    reports = json.loads(run.stdout.splitlines()[-1])
    assert len(reports) == 3
    for report in reports:
        assert report["spills"] == 0, report
        assert 2 * report["shared"] < HOPPER.shared_memory, report
