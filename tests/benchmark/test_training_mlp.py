"""The suite `training_mlp` without a GPU: it runs on the reference implementations with a fake clock."""

from __future__ import annotations

import pytest
import torch
from kernel_suite_case import SMALL

from blast.benchmark import training_mlp
from blast.benchmark.inputs.masks import live_share, training_masks
from blast.benchmark.inputs.weights import sparse_weights
from blast.benchmark.providers import mlp_training
from blast.benchmark.providers.peers import Stk, block_rows
from blast.benchmark.settings import settings_of
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError

SETTINGS = {
    "tokens": [40],
    "dtype": "float32",
    "repeats": 3,
    **settings_of("training_mlp"),
    "compiled": False,
}


@pytest.fixture
def fake_gpu(monkeypatch):
    def clock(rounds, repeats, seconds):
        return {name: Timing(*[1.0 if name.startswith("ours") else 10.0] * 3, repeats) for name in rounds}

    monkeypatch.setattr(training_mlp, "gpu_for", lambda suite: torch.device("cpu"))
    monkeypatch.setattr(training_mlp, "capture", lambda candidate: candidate.call(0))
    monkeypatch.setattr(training_mlp, "time_in_turn", clock)
    monkeypatch.setattr(
        training_mlp, "mlp_size", lambda name, block, dtype: SMALL["llama" in name]._replace(block=block)
    )


def measure(architecture="llama-nano", sparsity=0.8, **more):
    return training_mlp.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_an_error_of_one_sentence():
    with pytest.raises(BlastError, match=r"'training_mlp' needs a GPU and .* no CUDA GPU; .*blast job"):
        training_mlp.measure("llama-3.2-1b", 0.9, (128, 128), 0, SETTINGS)


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_ours_has_correct_output_and_gradients_and_is_timed_with_dense(fake_gpu, architecture):
    metrics = measure(architecture, tied=[False, True], tokens=[3, 40])
    ours = [entry for entry in metrics if entry["provider"] == "ours"]
    gated = architecture.startswith("llama")
    assert {entry.get("tied") for entry in ours} == ({False, True} if gated else {None})
    assert all(0 < entry["setting"]["error"] < 2e-5 for entry in ours)
    dense = [entry for entry in metrics if entry["provider"] == "dense_eager"]
    assert [(entry["tokens"], entry["value"]) for entry in dense] == [(3, 10.0), (40, 10.0)]


@pytest.mark.parametrize("place", range(5))
def test_a_wrong_output_or_gradient_raises_before_timing(fake_gpu, monkeypatch, place):
    """`place` selects the output or the gradient of input, gate, up or down."""
    right = mlp_training.expected_step

    def wrong(task, weights):
        expected = right(task, weights)
        expected[place] = 1.01 * expected[place]
        return expected

    monkeypatch.setattr(training_mlp, "expected_step", wrong)
    with pytest.raises(BlastError, match=r"ours at 40 tokens: its output or a gradient is off by .*e-03"):
        measure()


def test_the_share_of_live_hidden_blocks_is_recorded(fake_gpu):
    by_mask = {
        entry["setting"]["mask"]: entry["setting"]["live_hidden"]
        for entry in measure(sparsity=0.7, masks=["uniform", "every_hidden_live"])
        if entry["provider"] == "ours"
    }
    assert by_mask["every_hidden_live"] == 1
    assert 0.2 < by_mask["uniform"] < 1


def test_masks_without_dead_hidden_blocks_keep_the_block_count_or_are_not_run_if_it_is_too_small(fake_gpu):
    size, generator = SMALL[True], torch.Generator().manual_seed(0)
    masks = training_masks("every_hidden_live", size, False, 0.7, generator)
    assert masks.up.sum() == masks.gate.sum() == masks.down.sum() == round(0.3 * 32)
    assert live_share(masks) == 1
    entry = next(e for e in measure(sparsity=0.95, masks=["every_hidden_live"]) if e["provider"] == "ours")
    assert (entry["status"], entry["value"]) == ("not run", None)
    assert "fewer live blocks than hidden blocks" in entry["setting"]["cause"]


def test_a_hidden_block_is_dead_if_any_matrix_has_no_block_for_it():
    size, generator = SMALL[True], torch.Generator().manual_seed(0)
    masks = training_masks("every_hidden_live", size, False, 0.5, generator)
    masks.gate[0], masks.up[1], masks.down[:, 2] = False, False, False
    assert live_share(masks) == 5 / 8
    weights = sparse_weights(size, masks, False, generator)
    task = mlp_training.Task(size, torch.randn(9, 64), torch.randn(9, 64))
    expected = mlp_training.expected_step(task, weights)
    assert [len(blocks) for blocks in expected[2:]] == [int(mask.sum()) for mask in (masks.gate, masks.up, masks.down)]


def test_a_point_out_of_time_has_an_unfinished_entry(fake_gpu):
    (entry,) = measure(seconds=0)
    assert entry["unfinished"]
    assert entry["value"] is None


def test_a_peer_that_cannot_run_has_a_cause_and_an_unknown_peer_raises(fake_gpu):
    entry = next(entry for entry in measure(peers=["stk"]) if entry["provider"] == "stk")
    assert entry["status"] == "not run"
    assert entry["setting"]["cause"] == "stk knows blocks of 128 only"
    with pytest.raises(BlastError, match="did you mean 'stk'"):
        measure(peers=["stkk"])


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_the_gradients_of_a_peer_are_compared_with_the_same_reference(fake_gpu, monkeypatch, architecture):
    """A dense product replaces stk; tokens are padded to 128."""

    def product(self, matrix, h, bias):
        _, b_out, b_in = matrix.values.shape
        tiles = matrix.values.new_zeros(matrix.offsets.numel() - 1, matrix.cols, b_out, b_in)
        tiles = tiles.index_put((block_rows(matrix), matrix.indices.long()), matrix.values)
        return tiles.transpose(1, 2).reshape(tiles.shape[0] * b_out, -1) @ h

    monkeypatch.setattr(Stk, "refusal", staticmethod(lambda size: None))
    monkeypatch.setattr(Stk, "matrix", lambda self, matrix: matrix)
    monkeypatch.setattr(Stk, "product", product)
    (entry,) = [entry for entry in measure(architecture, peers=["stk"]) if entry["provider"] == "stk"]
    assert entry["value"] == 10.0
    assert entry["setting"]["error"] < 2e-5
