"""GPT-2: learned positions, GELU MLP, matrices stored `[in, out]` (transformers' Conv1D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

ARCHITECTURES = (
    Architecture(
        name="gpt2-nano",
        modality="language",
        shape=ModelShape(layers=2, hidden=128, ffn=512, heads=4, kv_heads=4, context=256, init_std=0.05),
        description="GPT-2 in small: the same classes, two layers, the dataset's own vocabulary",
    ),
    *(
        Architecture(
            name=name,
            modality="language",
            shape=SHAPES[name],
            pretrained=f"hub:openai-community/{name}",
            description="the published GPT-2",
        )
        for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    ),
)


def build(shape: ModelShape) -> GPT2LMHeadModel:
    """A GPT-2 of the given shape with fresh weights and no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.context,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.ffn,
        layer_norm_epsilon=shape.norm_eps,
        initializer_range=shape.init_std,
        tie_word_embeddings=shape.tied_embeddings,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The dataset's tokenizer decides about these; GPT-2's own number may lie outside a small vocabulary.
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)
