"""Peers in the suite `kernels`: their inputs, their tuning and their failures."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_suite_case import SETTINGS, SMALL, latencies, masks_of, measure, use_fake_gpu

from blast.benchmark import kernels
from blast.benchmark.inputs.weights import sparse_weights
from blast.benchmark.providers import bsr_tuning, peers
from blast.errors import BlastError


class Plain:
    """A peer that multiplies with dense matrices."""

    ADDS_BIAS, tuned = False, None

    def __init__(self, size, tokens, seconds):
        self.padded = tokens

    @staticmethod
    def refusal(size):
        return None

    def matrix(self, matrix):
        return matrix.dense()

    def bias(self, bias):
        return bias[:, None]

    def activations(self, x):
        return x

    def product(self, matrix, h, bias):
        return matrix @ h

    def dense(self, h):
        return h


@pytest.fixture
def fake_gpu(monkeypatch):
    use_fake_gpu(monkeypatch)


def test_a_peer_that_is_not_installed_has_a_row_with_the_cause(fake_gpu, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    metrics = kernels.measure("llama-nano", 0.5, (16, 16), 0, SETTINGS | {"peers": ["stk", "blksprs"]})
    lost = {(entry["provider"], entry["tokens"]): entry for entry in metrics if entry.get("status") == "not run"}
    assert set(lost) == {("stk", 3), ("stk", 40), ("blksprs", 3), ("blksprs", 40)}
    assert lost["stk", 3]["setting"]["cause"] == "stk knows blocks of 128 only"
    assert lost["blksprs", 3]["setting"]["cause"] == "the package blksprs is not installed"
    assert all(entry["value"] is None for entry in lost.values())


def test_a_peer_that_is_wrong_or_raises_has_a_row_with_the_cause(fake_gpu, monkeypatch):
    class Wrong(Plain):
        def product(self, matrix, h, bias):
            return super().product(matrix, h, bias).roll(1, 0)

    class Broken(Plain):
        def product(self, matrix, h, bias):
            raise RuntimeError("no kernel image\nand more")

    class Padding(Plain):
        def __init__(self, size, tokens, seconds):
            self.padded = peers.round_up(tokens, 16)

    class OwnBias(Plain):
        ADDS_BIAS = True

        def product(self, matrix, h, bias):
            assert bias is not None
            return matrix @ h + bias

    odd = {"wrong": Wrong, "broken": Broken, "padding": Padding, "own_bias": OwnBias}
    monkeypatch.setattr(peers, "PEERS", odd)
    metrics = latencies(measure("gpt2-nano", peers=list(odd)))
    at = {entry["provider"]: entry for entry in metrics if entry["tokens"] == 3}
    assert at["wrong"]["status"] == "failed"
    assert "off by" in at["wrong"]["setting"]["cause"]
    assert at["broken"]["setting"]["cause"] == "RuntimeError: no kernel image"
    assert at["padding"]["value"] == at["own_bias"]["value"] == 10.0


def test_the_error_for_an_unknown_peer_gives_the_nearest_name(fake_gpu):
    with pytest.raises(BlastError, match="did you mean 'torch_bsr'"):
        measure(peers=["torch_bsp"])


def test_a_slow_tuner_is_stopped_and_its_best_parameters_are_used(monkeypatch):
    from torch.sparse import _triton_ops_meta as tuner

    def slow(target, initial, reference, step, max_step, verbose, all_values=None):
        all_values |= {(1, 2, 1, 4): 3.0, (1, 4, 2, 8): 1.0, (1, 8, 1, 4): None}
        while True:
            # The tuner catches every Exception of a try.
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    monkeypatch.setattr(tuner, "minimize", slow)
    monkeypatch.setattr(tuner, "get_meta", lambda *a, **k: None)
    matrix = torch.eye(32).to_sparse_bsr((16, 16))
    found = bsr_tuning.tuned_parameters(matrix, torch.ones(32, 16), None, 1.0)
    assert found == ({"GROUP_SIZE_ROW": 1, "SPLIT_N": 4, "num_stages": 2, "num_warps": 8}, False)
    assert tuner.minimize is slow


def test_tries_of_the_tuner_are_short_and_a_tuner_without_result_gives_none(monkeypatch):
    import triton.testing
    from torch.sparse import _triton_ops_meta as tuner

    given_options = []

    def bench(function, **options):
        given_options.append(options)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(triton.testing, "do_bench", bench)
    monkeypatch.setattr(tuner, "get_meta", lambda *a, **k: None)
    matrix, bias = torch.eye(32).to_sparse_bsr((16, 16)), torch.zeros(32, 1).expand(-1, 16)
    assert bsr_tuning.tuned_parameters(matrix, torch.ones(32, 16), bias, 5) == (None, True)
    assert given_options
    assert all(options == {"warmup": bsr_tuning.WARM_UP, "rep": bsr_tuning.TIMED} for options in given_options)
    assert triton.testing.do_bench is bench


@given(st.integers(1, 9000), st.sampled_from([16, 32, 64, 128]), st.sampled_from([16, 32, 64, 128]), st.booleans())
def test_torch_bsr_pads_tokens_to_a_multiple_of_its_first_tiles(tokens, b_out, b_in, transposed):
    size = SMALL[True]._replace(block=(b_out, b_in), transposed_down=transposed)
    padded = peers.TorchBsr(size, tokens, 1.0).padded
    assert tokens <= padded < max(16, 2 * tokens, tokens + 128)
    for rows in (size.block[0], size.down_block[0]):
        split = max(padded // rows, 1)
        tile = padded // split
        assert tile * split == padded
        assert tile >= 16
        assert tile & (tile - 1) == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_torch_bsr_converts_matrices_without_change_rectangular_blocks_too(transposed):
    size = SMALL[False]._replace(block=(32, 16), transposed_down=transposed)
    masks, generator = masks_of(size)
    peer = peers.TorchBsr(size, 5, 1.0)
    for matrix in sparse_weights(size, masks, False, generator).matrices:
        assert torch.equal(peer.matrix(matrix).to_dense(), matrix.dense())


@pytest.mark.parametrize(
    ("block", "transposed", "able"),
    [
        ((128, 128), False, {"torch_bsr", "stk", "blksprs"}),
        ((64, 64), False, {"torch_bsr", "blksprs"}),
        ((128, 64), True, {"torch_bsr"}),
    ],
)
def test_a_peer_refuses_blocks_that_it_does_not_support(block, transposed, able, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    size = SMALL[True]._replace(block=block, dtype=torch.bfloat16, transposed_down=transposed)
    assert {name for name, peer in peers.PEERS.items() if peer.refusal(size) is None} == able


def test_the_compressed_bias_of_blksprs_is_added_to_the_right_rows():
    size = SMALL[False]
    peer = object.__new__(peers.Blksprs)
    peer.side, peer.padded = 16, 48
    bias = torch.randn(size.ffn)
    blocks = torch.zeros(size.ffn // 16 * 3, 16, 16) + peer.bias(bias)
    rows = blocks.view(-1, 3, 16, 16).permute(0, 2, 1, 3).reshape(size.ffn, 48)
    assert torch.equal(rows, bias[:, None].expand(-1, 48))


def test_a_peer_that_cannot_be_captured_is_timed_without_a_graph(fake_gpu, monkeypatch):
    def capture(candidate):
        if candidate.graph and getattr(candidate.call, "__self__", None):
            raise RuntimeError("operation not permitted when stream is capturing")
        return candidate.call

    monkeypatch.setattr(peers, "PEERS", {"synchronising": Plain})
    monkeypatch.setattr(kernels, "capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    metrics = latencies(measure("gpt2-nano", peers=["synchronising"]))
    assert {entry["setting"].get("graph", True) for entry in metrics if entry["provider"] == "synchronising"} == {False}
    assert all(entry["setting"].get("graph", True) for entry in metrics if entry["provider"] == "ours")
