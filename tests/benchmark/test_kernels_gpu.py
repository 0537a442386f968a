"""The suite `kernels` and fused models on a real GPU; skipped elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch

import blast
from blast import architectures
from blast.benchmark import kernels
from blast.benchmark.providers import peers
from blast.benchmark.settings import settings_of
from blast.model.discovery import match_matrices

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SETTINGS = {**settings_of("kernels"), "dtype": "bfloat16", "repeats": 10, "seconds": 60, "tuning_seconds": 6}


def test_a_point_of_the_suite_is_measured_completely():
    settings = SETTINGS | {"tokens": [1, 64, 512], "tied": [False, True], "masks": ["uniform", "skewed"], "fp8": True}
    metrics = kernels.measure("llama-3.2-1b", 0.9, (128, 128), 0, settings | {"peers": ["torch_bsr"]})
    timed = [entry for entry in metrics if entry["metric"] == "latency" and entry["value"] is not None]
    ours = [entry for entry in timed if entry["provider"] == "ours"]
    assert len(ours) == 3 * 2 * 2
    rounded = [entry for entry in timed if entry["provider"] == "ours_fp8"]
    assert len(rounded) == 2 * 2 * 2
    assert all(entry["setting"]["error"] < 1.2e-2 for entry in ours + rounded)
    assert all(0.02 < entry["setting"]["quantization_error"] < 0.07 for entry in rounded)
    assert all(0 < entry["low"] <= entry["value"] <= entry["high"] for entry in timed)
    assert {"dense_eager", "dense_compiled"} <= {entry["provider"] for entry in timed}
    shares = [entry for entry in metrics if entry["metric"] == "roofline_fraction" and entry["provider"] == "ours"]
    # A fraction far above one means a wrong model of the work. Only the L2 rate, measured once, may be exceeded.
    assert all(0.01 < entry["value"] < 1.5 for entry in shares), [(e["tokens"], e["value"]) for e in shares]


@pytest.mark.parametrize("architecture", ["gpt2", "vit-b-16", "smollm2-135m"])
def test_every_kind_of_mlp_is_correct_and_timed(architecture):
    settings = SETTINGS | {"tokens": [1, 200], "compiled": False}
    metrics = kernels.measure(architecture, 0.8, (64, 64), 0, settings)
    assert {entry["tokens"] for entry in metrics if entry["provider"] == "ours" and entry["value"]} == {1, 200}


@pytest.mark.parametrize(
    ("name", "architecture", "block", "down_block"),
    [
        ("torch_bsr", "llama-3.2-1b", (128, 128), "same"),
        ("torch_bsr", "gpt2", (64, 64), "same"),
        ("torch_bsr", "gpt2-xl", (128, 64), "transposed"),
        ("stk", "llama-3.2-1b", (128, 128), "same"),
        ("stk", "gpt2", (128, 128), "same"),
        ("blksprs", "llama-3.2-1b", (128, 128), "same"),
        ("blksprs", "gpt2", (64, 64), "same"),
    ],
)
def test_every_peer_is_correct_and_timed(name, architecture, block, down_block):
    size = kernels.mlp_size(architecture, block, "bfloat16", down_block)
    if cause := peers.peer_of(name).refusal(size):
        pytest.skip(cause)
    settings = SETTINGS | {"tokens": [16, 200], "compiled": False, "peers": [name], "down_block": down_block}
    metrics = kernels.measure(architecture, 0.9, block, 0, settings)
    found = [entry for entry in metrics if entry["provider"] == name]
    assert [entry["setting"].get("cause") for entry in found] == [None, None]
    # All of them can be captured in a CUDA graph.
    assert [entry["setting"].get("graph", True) for entry in found] == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_model_agrees_with_the_sparse_one_and_runs_in_a_graph(dtype):
    torch.manual_seed(0)
    model = architectures.build("llama-nano", vocab_size=512).eval()
    masks = {}
    for target in match_matrices(model):
        mask = torch.rand(target.shape[0] // 32, target.shape[1] // 32) < 0.5
        mask[0] = False  # an empty block row
        masks[target.name] = mask
    sparse = blast.to_sparse(model, masks, drop=True).to("cuda", dtype)
    fused = blast.fuse(copy.deepcopy(sparse))
    mlps = [[m for n, m in each.named_modules() if n.endswith(".mlp")][0] for each in (sparse, fused)]  # noqa: RUF015
    for tokens in (1, 17, 300):
        x = torch.randn(tokens, 128, device="cuda", dtype=dtype)
        with torch.no_grad():
            expected, out = (mlp(x) for mlp in mlps)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                replayed = mlps[1](x)
            graph.replay()
        torch.cuda.synchronize()
        assert ((out - expected).float().norm() / expected.float().norm()).item() < 2e-2
        assert torch.equal(replayed, out)
