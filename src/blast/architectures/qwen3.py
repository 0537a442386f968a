"""Qwen3: Llama with normalised queries and keys and heads of their own width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.architectures._weights.hub import HubWeights
from blast.architectures.architecture import Architecture
from blast.architectures.llama import decoder_sizes
from blast.architectures.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM, Qwen3ForSequenceClassification

ARCHITECTURES = (
    Architecture(
        name="qwen3-1.7b",
        modality="language",
        shape=SHAPES["qwen3-1.7b"],
        weights=HubWeights(
            repository="Qwen/Qwen3-1.7B-Base",
            revision="ea980cb0a6c2ae4b936e82123acc929f1cec04c1",
            bytes=3_441_185_608,
            licence="Apache-2.0",
        ),
        description="the published Qwen3 with 1.7 billion weights",
    ),
)


def build(shape: ModelShape) -> Qwen3ForCausalLM | Qwen3ForSequenceClassification:
    """A Qwen3 of the given shape with fresh weights and no dropout; with classes, a classifier of sequences."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    config = Qwen3Config(**decoder_sizes(shape))
    return Qwen3ForSequenceClassification(config) if shape.classes else Qwen3ForCausalLM(config)
