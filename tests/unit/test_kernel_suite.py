"""The suite `kernels` without a GPU: everything but the clock runs here, on the twins; no time in it was measured."""

from __future__ import annotations

import contextlib
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from blast import benchmark
from blast.benchmark import graph_timing, kernel_masks, kernel_peers, kernel_providers, kernels, roofline
from blast.benchmark.kernel_weights import (
    MlpSize,
    dense_mlp,
    expected_output,
    sets_needed,
    sparse_weights,
    without_dead,
)
from blast.benchmark.timing import Timing
from blast.errors import BlastError
from blast.experiment.benchmark_point import run_benchmark_point
from blast.experiment.point import Point
from blast.experiment.progress import headline
from blast.experiment.ratio import ratios
from blast.experiment.record import make_record
from blast.experiment.rows import record_rows
from blast.experiment.table import as_table

SETTINGS = {"tokens": [3, 40], "dtype": "float32", "repeats": 3, **benchmark.suites()["kernels"], "compiled": False}
CEILINGS = roofline.Ceilings(memory=3e12, l2=7e12, flops=8e14, launch=1e-6)
SMALL = {
    True: MlpSize(64, 128, True, "silu", False, (16, 16), torch.float32),
    False: MlpSize(64, 128, False, "gelu", True, (16, 16), torch.float32),
}


@pytest.fixture
def imaginary_gpu(monkeypatch):
    """The CPU in the place of a GPU, with an invented clock: a call of `ours` takes 1 ms, any other 10."""
    machine = kernel_providers.Machine(torch.device("cpu"), 1000, True, CEILINGS)

    def clock(rounds, repeats, seconds):
        return {name: Timing(*[1.0 if name.startswith("ours ") else 10.0] * 3, repeats) for name in rounds}

    monkeypatch.setattr(kernels, "this_machine", lambda dtype: machine)
    monkeypatch.setattr(kernels, "capture", lambda candidate: candidate.call(candidate.sets - 1))
    monkeypatch.setattr(kernels, "time_in_turn", clock)
    monkeypatch.setattr(kernels, "mlp_size", lambda name, block, dtype: SMALL["llama" in name]._replace(block=block))


def measure(architecture="llama-nano", sparsity=0.8, **more):
    return kernels.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


def latencies(metrics):
    return [entry for entry in metrics if entry["metric"] == "latency"]


def masks_of(size, tied=False, kind="uniform", sparsity=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size.hidden, size.ffn, size.gated, tied, sparsity, size.block)
    return kernel_masks.random_masks(kind, *shape, generator), generator


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused_in_one_sentence():
    with pytest.raises(BlastError, match=r"times GPU kernels and this machine has no CUDA GPU; .*blast job") as caught:
        measure("llama-3.2-1b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_ours_and_dense_are_timed_at_every_number_of_tokens(imaginary_gpu, architecture):
    metrics = measure(architecture, tied=[False, True], masks=["uniform", "skewed"])
    ours = [entry for entry in latencies(metrics) if entry["provider"] == "ours"]
    gated = architecture.startswith("llama")
    assert len(ours) == 2 * 2 * (2 if gated else 1)
    assert {entry.get("tied") for entry in ours} == ({False, True} if gated else {None})
    assert {entry["setting"]["mask"] for entry in ours} == {"uniform", "skewed"}
    assert all(entry["setting"]["error"] < 2e-5 for entry in ours)
    dense = [entry for entry in latencies(metrics) if entry["provider"] == "dense_eager"]
    assert [entry["tokens"] for entry in dense] == [3, 40]
    assert metrics[0]["provider"] == "ours"


def test_a_wrong_output_of_ours_ends_the_point_without_a_timing(imaginary_gpu, monkeypatch):
    right = kernel_providers._fused_call
    monkeypatch.setattr(kernel_providers, "_fused_call", lambda *a: lambda number: 1.01 * right(*a)(number))
    with pytest.raises(BlastError, match=r"ours at 3 tokens: its output is off by 1.0e-02 from the float32 reference"):
        measure()


def test_an_element_that_nobody_writes_is_an_infinite_error():
    expected = torch.ones(2, 4)

    def call(number):
        out = torch.empty(2, 4)
        out[:, :3] = 1
        return out

    assert graph_timing.error_of(call, expected, torch.arange(2)) == math.inf
    assert graph_timing.error_of(lambda number: expected.clone(), expected, torch.arange(2)) == 0


def test_timed_calls_fill_no_buffer_with_nan():
    torch.use_deterministic_algorithms(True)
    try:
        with graph_timing.plain_memory():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_peer_that_is_not_installed_has_a_row_that_says_so(imaginary_gpu, monkeypatch):
    monkeypatch.setattr(kernel_peers, "find_spec", lambda name: None)
    metrics = kernels.measure("llama-nano", 0.5, (16, 16), 0, SETTINGS | {"peers": ["stk", "blksprs"]})
    lost = {(entry["provider"], entry["tokens"]): entry for entry in metrics if entry.get("status") == "not run"}
    assert set(lost) == {("stk", 3), ("stk", 40), ("blksprs", 3), ("blksprs", 40)}
    assert lost["stk", 3]["setting"]["cause"] == "stk knows blocks of 128 only"
    assert lost["blksprs", 3]["setting"]["cause"] == "the package blksprs is not installed"
    assert all(entry["value"] is None for entry in lost.values())


def test_a_peer_that_is_wrong_or_breaks_has_a_row_that_says_so(imaginary_gpu, monkeypatch):
    class Wrong(kernel_peers.Peer):
        NAME = "wrong"

        def matrix(self, matrix):
            return matrix.dense()

        def product(self, matrix, h):
            return (matrix @ h).roll(1, 0)

    class Broken(Wrong):
        NAME = "broken"

        def product(self, matrix, h):
            raise RuntimeError("no kernel image\nand more")

    class Right(Wrong):
        NAME, MULTIPLE = "right", 16

        def product(self, matrix, h):
            return matrix @ h

    monkeypatch.setattr(kernel_peers, "PEERS", {"wrong": Wrong, "broken": Broken, "right": Right})
    metrics = latencies(measure("gpt2-nano", peers=["wrong", "broken", "right"]))
    at = {entry["provider"]: entry for entry in metrics if entry["tokens"] == 3}
    assert at["wrong"]["status"] == "failed"
    assert "off by" in at["wrong"]["setting"]["cause"]
    assert at["broken"]["setting"]["cause"] == "RuntimeError: no kernel image"
    assert at["right"]["value"] == 10.0


def test_an_unknown_peer_names_the_nearest(imaginary_gpu):
    with pytest.raises(BlastError, match="did you mean 'torch_bsr'"):
        measure(peers=["torch_bsp"])


def test_dead_hidden_blocks_are_reported_on_their_own(imaginary_gpu):
    metrics = latencies(measure(sparsity=0.9))
    skipped = [entry for entry in metrics if entry["provider"] == "ours_skipped"]
    assert len(skipped) == 2
    assert all(0 < entry["setting"]["dead_hidden"] < 1 for entry in skipped)


def test_the_dense_fallback_is_timed_where_the_table_calls_for_it(imaginary_gpu, monkeypatch):
    monkeypatch.setattr(kernel_providers, "dense_ranges", lambda *_: ((10, True), (None, False)))
    found = {entry["tokens"] for entry in latencies(measure()) if entry["provider"] == "ours_dense_fallback"}
    assert found == {3}


def test_what_is_left_when_the_seconds_are_over_is_said(imaginary_gpu):
    metrics = measure(seconds=0.0)
    assert [(entry["tokens"], entry["status"]) for entry in metrics] == [(3, "not run"), (40, "not run")]


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.booleans(), st.sampled_from(["uniform", "skewed"]), st.integers(0, 99), st.floats(0, 0.95))
def test_the_reference_the_kernels_and_the_skipped_form_agree(gated, tied, kind, seed, sparsity):
    size = SMALL[gated]._replace(dtype=torch.float64)
    masks, generator = masks_of(size, tied, kind, sparsity, seed)
    weights = sparse_weights(size, masks, tied, generator)
    x = torch.randn(5, size.hidden, dtype=torch.float64, generator=generator)
    dense = dense_mlp(x, [matrix.dense() for matrix in weights.matrices], weights.biases, size.activation)
    torch.testing.assert_close(expected_output(x, weights, size.activation).double(), dense, rtol=1e-3, atol=1e-5)
    for form in (weights, without_dead(weights)[0]):
        out = kernel_providers._fused_call(x, [form], size)(0)
        torch.testing.assert_close(out, dense)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["uniform", "skewed"]), st.floats(0, 0.99), st.integers(0, 99))
def test_every_mask_keeps_exactly_its_budget(kind, sparsity, seed):
    size = SMALL[True]
    masks, _ = masks_of(size, kind=kind, sparsity=sparsity, seed=seed)
    for mask in masks:
        assert mask.sum() == max(1, round((1 - sparsity) * mask.numel()))


def test_skewed_rows_differ_more_in_length_than_uniform_ones():
    size = MlpSize(1024, 4096, True, "silu", False, (16, 16), torch.float32)
    spread = {kind: masks_of(size, kind=kind)[0].up.sum(1).float().std() for kind in ("uniform", "skewed")}
    assert spread["skewed"] > 2 * spread["uniform"]


def test_trained_masks_are_read_from_the_masks_of_a_point(tmp_path):
    size = SMALL[True]
    masks, _ = masks_of(size)
    names = {"gate_proj": masks.gate, "up_proj": masks.up, "down_proj": masks.down}
    stored = {f"step000100/model.layers.{n}.mlp.{k}": m.to(torch.uint8) for n in (0, 1) for k, m in names.items()}
    stored |= {f"step000050/{key.partition('/')[2]}": 1 - value for key, value in stored.items()}
    save_file(stored, tmp_path / "llama-nano.s70.b16x16.safetensors")
    found = kernel_masks.trained_masks(tmp_path, "llama-nano", 0.7, (16, 16), False, "cpu")
    assert len(found) == 2
    assert all(torch.equal(left, right) for left, right in zip(found[1], masks, strict=True))
    assert kernel_masks.trained_masks(tmp_path, "llama-nano", 0.8, (16, 16), False, "cpu") == []


def test_without_trained_masks_their_row_says_not_run(imaginary_gpu, tmp_path):
    metrics = latencies(measure(masks=["uniform", "trained"], masks_folder=str(tmp_path)))
    lost = [entry for entry in metrics if entry.get("status") == "not run"]
    assert {entry["setting"]["mask"] for entry in lost} == {"trained"}
    assert "no masks of a trained llama-nano" in lost[0]["setting"]["cause"]


def test_weights_in_rotation_are_more_than_the_cache_holds():
    assert sets_needed(10, 1000) * 10 >= 3 * 1000
    assert sets_needed(10**9, 50 * 10**6) == 1


def test_few_tokens_are_bound_by_memory_and_many_by_what_the_cache_delivers():
    size = MlpSize(1024, 4096, True, "silu", False, (128, 128), torch.bfloat16)
    masks, generator = masks_of(size, sparsity=0.5)
    weights = sparse_weights(size, masks, False, generator)
    ceilings = CEILINGS._replace(launch=1e-9)
    few, many = (roofline.sparse_work(tokens, size, weights) for tokens in (1, 8192))
    assert roofline.bound_of(few, ceilings).name == "memory"
    assert roofline.bound_of(many, ceilings).name == "L2"
    # 128 tokens times 128 rows read 256 elements of two bytes a column for 2 · 128 · 128 flops: 64 flop a byte.
    assert many.flops / many.l2 == pytest.approx(64, rel=0.35)
    live = sum(matrix.values.numel() for matrix in weights.matrices)
    assert few.flops == 2 * live
    assert few.bytes == pytest.approx(2 * live, rel=0.02)


def test_the_roofline_says_which_share_of_its_bound_was_reached(imaginary_gpu):
    metrics = measure()
    shares = [entry for entry in metrics if entry["metric"] == "roofline_fraction" and entry["provider"] == "ours"]
    assert len(shares) == 2
    for entry in shares:
        assert entry["setting"]["bound"] == "launches"
        assert entry["value"] == pytest.approx(entry["setting"]["bound_ms"] / 1.0)


def test_a_benchmark_point_becomes_rows_with_ties_masks_and_missing_providers(imaginary_gpu, monkeypatch):
    point = Point(
        id="kernels-llama-nano.float32.s80.b16.seed0", grid="invented", stage="benchmark", architecture="llama-nano",
        method="blast", sparsity=0.8, block=(16, 16),
        benchmark=SETTINGS | {"suite": "kernels", "tied": [False, True], "peers": ["stk"]},
    )  # fmt: skip
    run = {"hardware": "imaginary-gpu", "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00"}
    record = make_record(point, status="ok", result=run_benchmark_point(point, None), run=run)
    table = as_table(record_rows(record))
    found = ratios(table, "latency")
    ours = found[found["provider"] == "ours"]
    assert set(zip(ours["tied"], ours["mask"], ours["tokens"], strict=True)) == {
        (tied, "uniform", tokens) for tied in (False, True) for tokens in (3, 40)
    }
    assert (ours["ratio"] == 10).all()
    assert set(table.loc[table["provider"] == "stk", "status"]) == {"not run"}
    assert headline(record) == "1 ms"


def test_a_tuner_that_takes_too_long_is_stopped_and_its_best_try_is_taken(monkeypatch):
    from torch.sparse import _triton_ops_meta as tuner

    def slow(target, initial, reference, step, max_step, verbose, all_values=None):
        all_values |= {(1, 2, 1, 4): 3.0, (1, 4, 2, 8): 1.0, (1, 8, 1, 4): None}
        while True:
            # The tuner itself swallows every Exception of a try.
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    monkeypatch.setattr(tuner, "minimize", slow)
    monkeypatch.setattr(tuner, "get_meta", lambda *a, **k: None)
    matrix = torch.eye(32).to_sparse_bsr((16, 16))
    found = kernel_peers.tuned_parameters(matrix, torch.ones(32, 16), 0.2)
    assert found == ({"GROUP_SIZE_ROW": 1, "SPLIT_N": 4, "num_stages": 2, "num_warps": 8}, False)
    assert tuner.minimize is slow


def test_a_peer_that_no_graph_can_hold_is_timed_with_its_launches_and_says_so(imaginary_gpu, monkeypatch):
    class Synchronising(kernel_peers.Peer):
        NAME = "synchronising"

        def matrix(self, matrix):
            return matrix.dense()

        def product(self, matrix, h):
            return matrix @ h

    def capture(candidate):
        if candidate.graph and getattr(candidate.call, "__self__", None):
            raise RuntimeError("operation not permitted when stream is capturing")
        return candidate.call

    monkeypatch.setattr(kernel_peers, "PEERS", {"synchronising": Synchronising})
    monkeypatch.setattr(kernels, "capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    metrics = latencies(measure("gpt2-nano", peers=["synchronising"]))
    assert {entry["setting"].get("graph", True) for entry in metrics if entry["provider"] == "synchronising"} == {False}
    assert all(entry["setting"].get("graph", True) for entry in metrics if entry["provider"] == "ours")
