"""The size that a description names is that of the shape, and of the file on the hub."""

from __future__ import annotations

import re

import pytest

from blast import architectures

DESCRIBED = {
    name: float(found[1])
    for name in architectures.names()
    if (found := re.search(r"with ([\d.]+) billion weights", architectures.get(name).description))
}


def weights(shape) -> int:
    """The weights of a decoder with gated MLPs and grouped keys."""
    head = shape.head_dim or shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.heads * head + 2 * shape.hidden * shape.kv_heads * head
    layer = attention + 3 * shape.hidden * shape.ffn + 2 * shape.hidden
    return shape.layers * layer + shape.hidden + shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)


def test_some_are_described():
    assert {"llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-3b"} <= set(DESCRIBED)


@pytest.mark.parametrize("name", [name for name in DESCRIBED if name.startswith("llama")])
def test_the_billions_are_those_of_the_shape(name):
    found = weights(architectures.get(name).shape) / 1e9
    assert found == pytest.approx(DESCRIBED[name], abs=0.06 if DESCRIBED[name] < 8 else 0.6)


@pytest.mark.parametrize("name", [name for name in DESCRIBED if name.startswith("llama")])
def test_the_bytes_of_the_hub_are_two_a_weight(name):
    architecture = architectures.get(name)
    assert architecture.weights.bytes == pytest.approx(2 * weights(architecture.shape), rel=1e-3)
