"""`ours_fp8` of the suite `kernels` without a GPU, with a fake clock: its check, its work and its sets of weights."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.common.quantize import FP8

from blast.benchmark import kernels
from blast.benchmark.inputs.masks import random_masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import expected_output, from_fp8, in_fp8, sets_needed, sparse_weights
from blast.benchmark.providers import mlp_inference
from blast.benchmark.settings import settings_of
from blast.benchmark.timing import roofline
from blast.benchmark.timing.cuda_graphs import ERROR_BOUND
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError

SETTINGS = {
    "tokens": [3, 40, 70], "dtype": "bfloat16", "repeats": 3, **settings_of("kernels"), "compiled": False,
    "fp8": True,
}  # fmt: skip
CEILINGS = roofline.Ceilings(memory=3e12, l2=7e12, flops=8e14, launch=1e-12)
SIZES = {
    "gated": MlpSize(64, 128, True, "silu", False, (16, 16), torch.bfloat16),
    "plain": MlpSize(64, 128, False, "gelu", True, (16, 16), torch.bfloat16),
}


@pytest.fixture
def fake_gpu(monkeypatch):
    """The CPU instead of a GPU, with a fake clock: every call takes 1 ms."""
    machine = mlp_inference.Machine(torch.device("cpu"), 1000, CEILINGS)
    monkeypatch.setattr(kernels, "this_machine", lambda dtype: machine)
    monkeypatch.setattr(kernels, "capture", lambda candidate: candidate.call(candidate.sets - 1))
    monkeypatch.setattr(kernels, "time_in_turn", lambda rounds, *_: dict.fromkeys(rounds, Timing(1.0, 1.0, 1.0, 3)))

    def size(name, block, dtype, down_block):
        return SIZES["gated" if "llama" in name else "plain"]._replace(dtype=getattr(torch, dtype))

    monkeypatch.setattr(kernels, "mlp_size", size)


def measured(architecture="llama-nano", **more):
    metrics = kernels.measure(architecture, 0.5, (16, 16), 0, SETTINGS | more)
    return [entry for entry in metrics if entry["provider"] == "ours_fp8"], metrics


def latencies(entries):
    return [entry for entry in entries if entry["metric"] == "latency"]


def weights_of(kind, tied=False, block=(16, 16)):
    size = SIZES[kind]._replace(block=block)
    generator = torch.Generator().manual_seed(3)
    masks = random_masks("uniform", size.hidden, size.ffn, size.gated, tied, 0.5, block, generator)
    return size, sparse_weights(size, masks, tied, generator)


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_fp8_is_a_separate_provider_with_its_error_and_stops_at_64_tokens(fake_gpu, architecture):
    entries, metrics = measured(architecture, tied=[False, True], masks=["uniform", "skewed"])
    ties = 2 if architecture.startswith("llama") else 1
    timed = latencies(entries)
    assert len(timed) == 2 * ties * 2
    assert {entry["tokens"] for entry in timed} == {3, 40}
    for entry in timed:
        # The kernel's error is rounding only; the error of the quantized weights is much larger.
        assert entry["setting"]["error"] < ERROR_BOUND["bfloat16"]
        assert 0.02 < entry["setting"]["quantization_error"] < 0.07
    others = [entry for entry in metrics if entry["provider"] != "ours_fp8"]
    assert not any("quantization_error" in entry["setting"] for entry in others)
    ours = [entry for entry in others if entry["provider"] == "ours" and entry["metric"] == "latency"]
    assert len(ours) == 3 * ties * 2


def test_fp8_is_timed_only_if_requested(fake_gpu):
    assert measured(fp8=False)[0] == []
    assert {entry["tokens"] for entry in measured(fp8_tokens=70)[0]} == {3, 40, 70}


def test_float32_has_a_row_with_the_cause_why_it_did_not_run(fake_gpu):
    timed = latencies(measured(dtype="float32")[0])
    assert [(entry["tokens"], entry["status"]) for entry in timed] == [(3, "not run"), (40, "not run")]
    assert timed[0]["setting"]["cause"] == "fp8 weights are multiplied with float16 or bfloat16 only"


def test_a_wrong_fp8_output_raises_before_timing(fake_gpu, monkeypatch):
    right = mlp_inference._fused_call

    def wrong(x, sets, size):
        factor = 1.02 if sets[0].gate_up_scales is not None else 1.0
        return lambda number: factor * right(x, sets, size)(number)

    monkeypatch.setattr(mlp_inference, "_fused_call", wrong)
    with pytest.raises(BlastError, match=r"ours_fp8 at 3 tokens: its output is off by 2.\de-02 from the float32"):
        measured()


@pytest.mark.parametrize(("kind", "tied"), [("gated", False), ("gated", True), ("plain", False)])
@pytest.mark.parametrize("block", [(16, 16), (16, 32)])
def test_the_reference_uses_the_dequantized_weights_of_the_kernels(kind, tied, block):
    size, weights = weights_of(kind, tied, block)
    quantised = in_fp8(weights)
    restored = from_fp8(quantised)
    assert quantised.gate_up.dtype == quantised.down.dtype == FP8
    x = torch.randn(9, size.hidden).to(size.dtype)
    out = mlp_inference._fused_call(x, [quantised], size)(0)
    assert torch.equal(out, mlp_inference._fused_call(x, [restored], size)(0))
    expected, full = (expected_output(x, w, size.activation) for w in (restored, weights))
    assert (out.float() - expected).norm() / expected.norm() < 8e-3
    assert (expected - full).norm() / full.norm() > 0.02
    for before, after in zip(weights.matrices, restored.matrices, strict=True):
        off = (after.dense().float() - before.dense().float()).norm() / before.dense().float().norm()
        assert 0.01 < off < 0.04


def test_fp8_weights_rotate_in_twice_as_many_sets_in_separate_memory():
    size = SIZES["gated"]
    machine = mlp_inference.Machine(torch.device("cpu"), 200_000, CEILINGS)
    case = mlp_inference.Case("llama-nano", size, 0.5, 0, machine, None)
    plain, quantised = case.sparse("uniform", False), case.fp8("uniform", False)
    bytes_of = [sum(part.nbytes for part in (w.gate_up, w.up, w.down)) for w in (plain[0], quantised[0])]
    assert bytes_of[0] == 2 * bytes_of[1]
    assert len(quantised) == sets_needed(bytes_of[1], machine.l2_bytes)
    assert len(quantised) * bytes_of[1] >= 3 * machine.l2_bytes
    for name in ("gate_up", "down", "gate_up_scales", "down_scales"):
        assert len({getattr(weights, name).data_ptr() for weights in quantised}) == len(quantised)


def test_an_fp8_weight_counts_as_one_byte_and_a_scale_as_four():
    size, weights = weights_of("gated")
    full, quantised = (roofline.sparse_work(4, size, form) for form in (weights, in_fp8(weights)))
    blocks = sum(matrix.values.shape[0] for matrix in weights.matrices)
    assert full.bytes - quantised.bytes == blocks * 16 * 16 - 4 * blocks
    assert quantised.flops == full.flops
    # Only the weights' part of the L2 traffic halves.
    assert full.l2 / 2 < quantised.l2 < full.l2
