"""Logits of classifiers of images and of sentences."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from blast.evaluation.class_logits import class_logits


def test_a_sentence_has_the_same_logits_with_padding() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=32, pad_token_id=0, num_labels=3)).eval()
    sentence = torch.tensor([[5, 9, 2]])
    padded = torch.tensor([[5, 9, 2, 0, 0], [7, 1, 4, 6, 8]])
    with torch.no_grad():
        alone, among = class_logits(model, sentence), class_logits(model, padded)
    assert among.shape == (2, 3)
    torch.testing.assert_close(among[:1], alone)
    # Padding that is read changes them.
    assert not torch.allclose(model(input_ids=padded[:1]).logits, alone)


def test_logits_of_images_are_float32() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).bfloat16()
    images = torch.ones(2, 3, 2, 2, dtype=torch.bfloat16)
    found = class_logits(model, images)
    assert found.dtype == torch.float32
    assert found.equal(model(images).float())
