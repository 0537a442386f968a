"""Qwen3: Llama with normalised queries and keys and heads of their own width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.architectures.architecture import Architecture
from blast.architectures.llama import decoder_sizes
from blast.architectures.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

ARCHITECTURES = (
    Architecture(
        name="qwen3-1.7b",
        modality="language",
        shape=SHAPES["qwen3-1.7b"],
        pretrained="hub:Qwen/Qwen3-1.7B-Base",
        description="the published Qwen3 with 1.7 billion weights",
    ),
)


def build(shape: ModelShape) -> Qwen3ForCausalLM:
    """A Qwen3 of the given shape with fresh weights and no dropout."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**decoder_sizes(shape)))
