"""Attention of a session, against attention with repeated heads in float64."""

from __future__ import annotations

import warnings

import pytest
import torch

from blast.generation.attention import attend, count_blocks, prompt_mask, step_block_mask, step_mask
from blast.generation.cache import capacity_for

BATCH, SIZE, CAPACITY = 3, 16, 384


def reference(query, key, value, mask):
    shared = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(shared, 1) for part in (key, value))
    scores = (query.double() @ key.transpose(2, 3)) * SIZE**-0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def inputs(heads, shared, tokens, cached):
    generator = torch.Generator().manual_seed(heads + tokens)
    return [
        torch.randn(BATCH, count, length, SIZE, generator=generator)
        for count, length in ((heads, tokens), (heads // shared, cached), (heads // shared, cached))
    ]


@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (4, 4), (6, 3)])
@pytest.mark.parametrize("place", [0, 5, 127, 128, 383])
def test_a_step_reads_the_cached_tokens_alone(heads, shared, place):
    query, key, value = inputs(heads, shared, 1, CAPACITY)
    padding = torch.tensor([0, min(place, 3), place])
    mask = step_mask(torch.tensor([place]), padding, CAPACITY)
    assert mask.sum((1, 2, 3)).tolist() == [place + 1 - int(pad) for pad in padding]
    found, _ = attend(None, query, key, value, mask)
    torch.testing.assert_close(found, reference(query, key, value, mask).float())


@pytest.mark.parametrize("place", [0, 127, 128, 300])
def test_flex_attention_reads_the_same(place):
    query, key, value = inputs(4, 2, 1, CAPACITY)
    position, padding = torch.tensor([7]), torch.tensor([0, 0, 0])
    block_mask = step_block_mask(position, padding, CAPACITY)
    # Both change in place, as between the replays of a graph.
    position.fill_(place)
    padding.copy_(torch.tensor([0, min(place, 3), place]))
    count_blocks(block_mask, position)
    assert block_mask.kv_num_blocks.tolist() == [[[place // 128 + 1]]] * BATCH
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it runs without being compiled here, as its own reference
        found, _ = attend(None, query, key, value, None, block_mask=block_mask)
    wanted = reference(query, key, value, step_mask(position, padding, CAPACITY))
    torch.testing.assert_close(found, wanted.float())


@pytest.mark.parametrize("shared", [1, 2])
def test_padded_prompts_do_not_read_their_padding(shared):
    query, key, value = inputs(4, shared, 7, 7)
    padding = torch.tensor([0, 2, 6])
    mask = prompt_mask(padding, 7)
    found, _ = attend(None, query, key, value, mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found, reference(query, key, value, mask).float())
    for row, pad in enumerate(padding):
        assert not mask[row, 0, pad:, :pad].any()
        assert mask[row, 0, pad:, pad:].equal(torch.ones(7 - pad, 7 - pad, dtype=torch.bool).tril())
    causal, _ = attend(None, query, key, value, None)
    torch.testing.assert_close(causal[0], found[0])


def test_capacities_are_multiples_of_256_up_to_what_the_model_takes():
    assert [capacity_for(tokens, 1000) for tokens in (1, 256, 257, 800, 1000)] == [256, 256, 512, 1000, 1000]
    assert capacity_for(5000, None) == 5120
