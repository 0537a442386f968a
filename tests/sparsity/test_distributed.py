"""Two processes over gloo choose the same masks, and train as one process with twice the batch."""

from __future__ import annotations

import pytest
import torch
from distributed_cases import RANKS, WAYS, work
from ranks import run_ranks
from switch_cases import dense_weights, sparsify, steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder), ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, "wrapped"])
def test_masks_and_weights_are_the_same_bits_in_every_process(ranks, way):
    first, second = (rank[way] for rank in ranks)
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert first["execution"] == ("masked" if way in ("masked", "wrapped") else "sparse")


@pytest.mark.parametrize("way", [*WAYS, "wrapped"])
def test_two_processes_train_as_one_with_both_batches(ranks, way):
    alone = sparsify("gpt2-nano", execution="masked")
    steps(alone, accumulate=RANKS)
    ours = ranks[0][way]
    assert all(torch.equal(mask, alone.masks[name]) for name, mask in ours["masks"].items())
    for name, weight in dense_weights(alone.model).items():
        torch.testing.assert_close(ours["weights"][name], weight, rtol=1e-3, atol=2e-5)


def test_scores_are_brought_together_before_the_decision(ranks):
    first, second = (rank["apart"] for rank in ranks)
    name = "transformer.h.0.mlp.c_fc"
    # These processes drifted apart, as rounding can make them, and still agree on every mask.
    assert not torch.equal(first["weights"][name], second["weights"][name])
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())


def test_what_several_processes_cannot_do_is_refused(ranks):
    for rank in ranks:
        assert "DistributedDataParallel does not allow" in rank["refused"]
        assert "differs from that of backward()" in rank["forgotten"]


def test_all_processes_wait_or_go_on_together_if_one_lacks_a_finite_gradient(ranks):
    first, second = (rank["uneven"] for rank in ranks)
    # After step 4, whose gradient is infinite in one process, an update is due in step 5 too.
    assert first["waited"] == second["waited"] == [False, True, False, True, True, True, False, False]
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
