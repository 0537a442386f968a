"""Llama: rotary positions, RMS norms, grouped queries, SwiGLU MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ARCHITECTURES = (
    Architecture(
        name="llama-nano",
        modality="language",
        shape=ModelShape(
            layers=2,
            hidden=128,
            ffn=384,
            heads=4,
            kv_heads=2,
            gated=True,
            context=256,
            rope_theta=10000.0,
            init_std=0.05,
        ),
        description="Llama in small: the same classes, two layers, the dataset's own vocabulary",
    ),
    Architecture(
        name="llama-3.2-1b",
        modality="language",
        shape=SHAPES["llama-3.2-1b"],
        pretrained="hub:meta-llama/Llama-3.2-1B",
        description="the published Llama 3.2 with 1.2 billion weights",
    ),
    *(
        Architecture(
            name=f"llama-3.1-{size}",
            modality="language",
            shape=SHAPES[f"llama-3.1-{size}"],
            pretrained=f"hub:meta-llama/Llama-3.1-{size.upper()}",
            description=f"the published Llama 3.1 with {weights} billion weights",
        )
        for size, weights in (("8b", 8), ("70b", 71), ("405b", 406))
    ),
    Architecture(
        name="smollm2-135m",
        modality="language",
        shape=SHAPES["smollm2-135m"],
        pretrained="hub:HuggingFaceTB/SmolLM2-135M",
        description="the published SmolLM2 with 135 million weights",
    ),
)


def rope_parameters(shape: ModelShape) -> dict[str, Any]:
    """The shape's rotary positions as transformers' configs take them."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        parameters |= {
            "rope_type": "llama3",
            "factor": shape.rope_scaling.factor,
            "low_freq_factor": shape.rope_scaling.low_frequency,
            "high_freq_factor": shape.rope_scaling.high_frequency,
            "original_max_position_embeddings": shape.rope_scaling.original_context,
        }
    return parameters


def decoder_sizes(shape: ModelShape) -> dict[str, Any]:
    """The arguments that the configs of Llama and its relatives share."""
    return {
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width_of_head,
        "rms_norm_eps": shape.norm_eps,
        "initializer_range": shape.init_std,
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_dropout": 0.0,
        "rope_parameters": rope_parameters(shape),
        # The dataset's tokenizer decides about these.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def build(shape: ModelShape) -> LlamaForCausalLM:
    """A Llama of the given shape with fresh weights and no dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**decoder_sizes(shape)))
