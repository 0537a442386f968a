"""The true architectures on the meta device against their published sizes."""

from __future__ import annotations

import pytest
import torch
from hub_copies import NINE

from blast import architectures
from blast.model.discovery import find_mlps, match_matrices

# Parameters as published, and those of them in MLP matrices, which follow from the published widths.
PUBLISHED = {
    "gpt2": (124_439_808, 56_623_104),
    "gpt2-medium": (354_823_168, 201_326_592),
    "gpt2-large": (774_030_080, 471_859_200),
    "gpt2-xl": (1_557_611_200, 983_040_000),
    "llama-3.2-1b": (1_235_814_400, 805_306_368),
    "llama-3.1-405b": (405_853_388_800, 329_772_957_696),
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_mlp_weights_are_the_published_ones(name):
    model = _meta(name)
    total, mlp = PUBLISHED[name]
    assert sum(weight.numel() for weight in model.parameters()) == total
    found = [target for group in find_mlps(model) for target in group.targets]
    assert sum(target.shape[0] * target.shape[1] for target in found) == mlp
    shape = architectures.get(name).shape
    assert len(found) == shape.layers * len(shape.mlp_matrices)
    assert shape.mlp_weights == mlp


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
    for target in match_matrices(_meta(name)):
        assert target.shape[0] % largest == target.shape[1] % largest == 0
