"""Two processes over gloo train a sharded model (`fully_shard`): the same masks as one process with both batches."""

from __future__ import annotations

import pytest
import torch
from distributed_cases import RANKS
from ranks import run_ranks
from sharding_cases import MATRICES, WAYS, work
from switch_cases import STEPS, sparsify, steps

from blast.block_sparse.blocks import BlockShape, block_squares, expand_mask, tiles

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    run_ranks(work, str(folder), ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("way", WAYS)
def test_masks_of_a_sharded_model_are_those_of_one_process_at_every_step(ranks, way):
    name, settings = WAYS[way]
    alone = sparsify(name, execution="masked", **settings)
    for step in range(STEPS):
        steps(alone, step + 1, accumulate=RANKS)
        for rank in ranks:
            ours = rank[way]["masks"][step]
            assert ours.keys() == alone.masks.keys()
            assert all(torch.equal(mask, alone.masks[name]) for name, mask in ours.items()), step
    weights = dict(alone.model.named_parameters())
    for name, weight in ranks[0][way]["weights"].items():
        if weight.dim() == 1:
            continue  # the bias of attention's keys has no gradient but rounding, which Adam makes steps of
        torch.testing.assert_close(weight, weights[name].detach(), rtol=1e-3, atol=2e-5)
    assert ranks[0][way]["execution"] == "masked"


@pytest.mark.parametrize("way", WAYS)
def test_dead_blocks_of_a_sharded_model_are_zero_after_every_step(ranks, way):
    for rank in ranks:
        assert rank[way]["dead"] == rank[way]["moments"] == [0] * STEPS
    assert any((weight == 0).float().mean() > 0.7 for weight in ranks[0][way]["weights"].values())


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_norms_and_clearing_of_a_shard_match_the_whole_matrix(ranks, number):
    _, block, _ = MATRICES[number]
    for rank in ranks:
        found = rank["shards"][number]
        expected = block_squares(tiles(found["matrix"], BlockShape(*block))).sqrt()
        torch.testing.assert_close(found["norms"], expected)
        torch.testing.assert_close(found["turned"], expected.t())
        live = expand_mask(found["mask"], BlockShape(*block))
        for cleared in found["cleared"]:
            assert torch.equal(cleared, torch.where(live, found["matrix"], 0))
    assert torch.equal(ranks[0]["shards"][number]["norms"], ranks[1]["shards"][number]["norms"])


def test_a_run_can_finish_while_the_model_has_unsharded_parameters(ranks):
    for rank in ranks:
        found = rank["finished early"]
        assert found["before"] == "Tensor", "the evaluation left no copy, so that this test shows nothing"
        assert found["dead"] == 0
        assert found["achieved"] == pytest.approx(0.8, abs=0.05)


def test_a_sharded_run_resumes_from_a_checkpoint_bit_for_bit(ranks):
    for rank in ranks:
        for kind in ("masks", "weights"):
            ours, theirs = rank["resumed"][kind]
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_unsupported_uses_of_a_sharded_model_are_refused_with_a_remedy(ranks):
    for rank in ranks:
        asked, switched, converted, saved = rank["refused"]
        assert asked == switched
        assert "which fully_shard does not allow" in asked
        assert "blast.average_gradients(model)" in asked
        assert converted == saved
        assert "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))" in saved


def test_a_sharded_model_is_saved_from_its_full_state(ranks):
    for rank in ranks:
        masks, loaded = rank["saved"]["masks"], rank["saved"]["loaded"]
        assert masks.keys() == loaded.keys()
        assert all(torch.equal(mask, loaded[name]) for name, mask in masks.items())
