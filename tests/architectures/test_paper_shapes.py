"""The nine true architectures on the meta device against what is published of them, and the memory that blocks save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hub_copies import NINE, shrunk

import blast
from blast import architectures
from blast.architectures.footprint import footprint
from blast.errors import BlastError
from blast.model.discovery import find_mlps, match_linears
from blast.model.memory import model_bytes

# Parameters as published, and the share of them in MLP matrices that follows from the published widths.
PUBLISHED = {
    "gpt2": (124_439_808, 56_623_104),
    "gpt2-medium": (354_823_168, 201_326_592),
    "gpt2-large": (774_030_080, 471_859_200),
    "gpt2-xl": (1_557_611_200, 983_040_000),
    "llama-3.2-1b": (1_235_814_400, 805_306_368),
    "qwen3-1.7b": (1_720_574_976, 1_056_964_608),
    "smollm2-135m": (134_515_008, 79_626_240),
    "vit-b-16": (86_567_656, 56_623_104),
    "vit-l-16": (304_326_632, 201_326_592),
}
BLOCKS = {"gpt2-xl": [8, 16, 32, 64], "smollm2-135m": [8, 16, 32, 64]}
# Bytes of a weight in the published files, and what those files hold besides: GPT-2's masks of causal attention.
STORED = {"llama-3.2-1b": 2, "qwen3-1.7b": 2, "smollm2-135m": 2}
CAUSAL_MASKS = {name: architectures.SHAPES[name].layers * 1024 * 1024 for name in NINE if name.startswith("gpt2")}


def _meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return architectures.build(name)


@pytest.mark.parametrize("name", NINE)
def test_parameters_and_mlp_share_are_the_published_ones(name):
    model = _meta(name)
    total, mlp = PUBLISHED[name]
    assert sum(weight.numel() for weight in model.parameters()) == total
    found = [target for group in find_mlps(model) for target in group.targets]
    assert sum(target.shape[0] * target.shape[1] for target in found) == mlp
    shape = architectures.get(name).shape
    assert len(found) == shape.layers * len(shape.mlp_matrices)
    assert footprint(name).parameters == total
    assert footprint(name).mlp_share == pytest.approx(mlp / total)


@pytest.mark.parametrize("name", NINE)
def test_the_published_file_is_as_large_as_the_parameters_say(name):
    total, _ = PUBLISHED[name]
    expected = total * STORED.get(name, 4) + CAUSAL_MASKS.get(name, 0) * 4
    # The rest is the names of the tensors.
    assert 0 <= architectures.get(name).weights.bytes - expected < 150_000


@pytest.mark.parametrize("name", NINE)
def test_legal_blocks_divide_every_mlp_matrix(name):
    assert architectures.legal_blocks(name) == BLOCKS.get(name, [8, 16, 32, 64, 128, 256])
    largest = architectures.legal_blocks(name)[-1]
    for target in match_linears(_meta(name)):
        assert target.shape[0] % largest == target.shape[1] % largest == 0


@pytest.mark.parametrize("name", NINE)
@pytest.mark.parametrize("block", [8, 16])
def test_memory_is_what_a_sparse_model_of_that_shape_holds(name, block, monkeypatch):
    """The arithmetic for the large models, against bytes counted on the same architecture shrunk."""
    small = shrunk(name)
    found = {"vocab_size": small.vocab, "context": small.context}
    if small.classes:
        found = {"num_classes": small.classes, "image_size": small.image, "channels": small.channels}
    known = architectures.get(name)
    monkeypatch.setattr(architectures, "get", lambda _: replace(known, shape=small))
    model = architectures.build(name, **found)
    dense = model_bytes(model)
    masks, draw = {}, torch.Generator().manual_seed(0)
    for target in match_linears(model):
        mask = torch.zeros(target.shape[0] // block, target.shape[1] // block, dtype=torch.bool)
        # Equal masks would share an index.
        mask.view(-1)[torch.randperm(mask.numel(), generator=draw)[: mask.numel() // 4]] = True
        masks[target.name] = mask
    sparse = model_bytes(blast.to_sparse(model, masks, block, drop=True))
    counted = footprint(name, sparsity=0.75, block=block, bytes_a_weight=4)
    assert counted.dense_mlp_bytes == dense.mlp
    assert counted.sparse_mlp_bytes == sparse.mlp
    assert counted.dense_bytes - counted.sparse_bytes == dense.weights - sparse.weights


def test_the_largest_llama_needs_as_much_less_memory_as_the_paper_says():
    """The weights alone of 405 billion in bfloat16, at 95 %: 4.38 times fewer bytes."""
    found = footprint("llama-3.1-405b", sparsity=0.95, block=128)
    assert found.dense_bytes == 2 * 405_853_388_800
    assert found.dense_bytes / found.sparse_bytes == pytest.approx(4.38, abs=0.01)


@pytest.mark.parametrize(("name", "least", "most"), [("gpt2", 0.45, 0.46), ("llama-3.1-405b", 0.81, 0.82)])
def test_the_share_of_the_mlps_grows_with_the_model(name, least, most):
    assert least < footprint(name).mlp_share < most


def test_a_block_that_does_not_divide_is_refused():
    with pytest.raises(BlastError, match=r"128 .*gpt2-xl.*8, 16, 32, 64"):
        footprint("gpt2-xl", sparsity=0.9, block=128)
