"""Weights, masks and roofline work of the suite `kernels`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_suite_case import CEILINGS, SMALL, masks_of

from blast.benchmark.inputs.masks import training_masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import dense_mlp, expected_output, sets_needed, sparse_weights, without_dead
from blast.benchmark.providers import mlp_inference
from blast.benchmark.timing import roofline
from blast.errors import BlastError


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.booleans(), st.sampled_from(["uniform", "skewed"]), st.integers(0, 99), st.floats(0, 0.95))
def test_reference_kernels_and_kernels_without_dead_blocks_agree(gated, tied, kind, seed, sparsity):
    size = SMALL[gated]._replace(dtype=torch.float64)
    masks, generator = masks_of(size, tied, kind, sparsity, seed)
    weights = sparse_weights(size, masks, tied, generator)
    x = torch.randn(5, size.hidden, dtype=torch.float64, generator=generator)
    dense = dense_mlp(x, [matrix.dense() for matrix in weights.matrices], weights.biases, size.activation)
    torch.testing.assert_close(expected_output(x, weights, size.activation).double(), dense, rtol=1e-3, atol=1e-5)
    for form in (weights, without_dead(weights)[0]):
        out = mlp_inference._fused_call(x, [form], size)(0)
        torch.testing.assert_close(out, dense)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["uniform", "skewed"]), st.floats(0, 0.99), st.integers(0, 99))
def test_every_mask_keeps_exactly_its_number_of_blocks(kind, sparsity, seed):
    size = SMALL[True]
    masks, _ = masks_of(size, kind=kind, sparsity=sparsity, seed=seed)
    for mask in masks:
        assert mask.sum() == max(1, round((1 - sparsity) * mask.numel()))


def test_the_error_for_an_unknown_mask_gives_the_nearest_kind():
    with pytest.raises(BlastError, match="did you mean 'skewed'"):
        masks_of(SMALL[True], kind="skewd")
    with pytest.raises(BlastError, match="did you mean 'every_hidden_live'"):
        training_masks("every_hidden_liv", SMALL[True], False, 0.5, torch.Generator())


def test_skewed_rows_differ_more_in_length_than_uniform_rows():
    size = MlpSize(1024, 4096, True, "silu", False, (16, 16), torch.float32)
    spread = {kind: masks_of(size, kind=kind)[0].up.sum(1).float().std() for kind in ("uniform", "skewed")}
    assert spread["skewed"] > 2 * spread["uniform"]


def test_all_sets_of_weights_together_exceed_the_cache():
    assert sets_needed(10, 1000) * 10 >= 3 * 1000
    assert sets_needed(10**9, 50 * 10**6) == 1


def test_few_tokens_are_bound_by_memory_and_many_by_the_l2_cache():
    size = MlpSize(1024, 4096, True, "silu", False, (128, 128), torch.bfloat16)
    masks, generator = masks_of(size, sparsity=0.5)
    weights = sparse_weights(size, masks, False, generator)
    ceilings = CEILINGS._replace(launch=1e-9)
    few, many = (roofline.sparse_work(tokens, size, weights) for tokens in (1, 8192))
    assert roofline.bound_of(few, ceilings).name == "memory"
    assert roofline.bound_of(many, ceilings).name == "L2"
    # For 128 tokens and 128 rows, a column reads 256 elements of 2 bytes for 2 · 128 · 128 flops: 64 flop a byte.
    assert many.flops / many.l2 == pytest.approx(64, rel=0.35)
    live = sum(matrix.values.numel() for matrix in weights.matrices)
    assert few.flops == 2 * live
    assert few.bytes == pytest.approx(2 * live, rel=0.02)
