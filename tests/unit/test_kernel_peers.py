"""Other people's kernels in the suite `kernels`: what is asked of them, and what becomes of those that fail."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from kernel_suite_case import SETTINGS, imagine_gpu, latencies, measure

from blast.benchmark import kernel_peers, kernels
from blast.errors import BlastError


@pytest.fixture
def imaginary_gpu(monkeypatch):
    imagine_gpu(monkeypatch)


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
