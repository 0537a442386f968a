"""The nine architectures, loaded by the code that loads the published ones, from a cache of small copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_copies import NINE, copy_photographs, copy_texts, copy_weights
from torch.nn import functional as F

import blast
from blast import architectures, datasets
from blast.datasets import imagenet
from blast.errors import BlastError
from blast.evaluation.loss import evaluate_language
from blast.evaluation.sparse_state import require_sparse_state
from blast.evaluation.top_k import evaluate_vision
from blast.model.memory import model_bytes

STEPS = 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    copy_texts(folder)
    copy_photographs(folder / "raw" / "imagenet")
    for name in NINE:
        copy_weights(name, folder)
    return folder


@pytest.fixture(autouse=True)
def _no_imagenet_of_the_user(monkeypatch):
    monkeypatch.delenv("BLAST_IMAGENET", raising=False)


def _batches(name: str, cache: Path):
    """Data, loss and evaluation of one architecture."""
    if architectures.get(name).modality == "vision":
        data = imagenet.load(cache, {"image_size": 32})
        return (
            data,
            lambda model, step: F.cross_entropy(model((b := data.train_batch(step, 4, 0))[0]), b[1]),
            lambda model: evaluate_vision(model, data, batch=4),
        )
    dataset = datasets.get(f"wikitext103@{name}")
    dataset.fetch(cache)
    dataset.prepare(cache, {})
    data = dataset.load(cache, {})

    def loss(model, step):
        tokens = data.train_batch(step, 2, 32, 0)
        return F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())

    return data, loss, lambda model: evaluate_language(model, data, length=32, limit=4)


@pytest.mark.parametrize("name", NINE)
def test_each_architecture_is_loaded_sparsified_trained_saved_loaded_and_evaluated(name, cache, tmp_path):
    data, loss, evaluate = _batches(name, cache)
    sizes = {"num_classes": data.num_classes, "image_size": 32, "channels": 3} if hasattr(data, "num_classes") else {}
    model = architectures.load(name, cache, **sizes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = blast.Sparsifier(
        model, optimizer, blast.SparsifyConfig(sparsity=0.75, block=16, steps=STEPS, update_every=1, hold=0.34)
    )
    for step in range(STEPS):
        loss(model, step).backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    expected = evaluate(model.eval())
    blast.to_sparse(model, sparsifier.masks)
    blast.save(model, tmp_path / "checkpoint")
    again = blast.load(tmp_path / "checkpoint")
    require_sparse_state(again, sparsifier.masks)
    assert model_bytes(again).mlp < 0.4 * model_bytes(architectures.load(name, cache)).mlp
    found = evaluate(again)
    assert [entry["metric"] for entry in found] == [entry["metric"] for entry in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-4)


@pytest.mark.parametrize("name", NINE)
def test_the_weights_are_those_of_the_copy_and_have_no_dropout(name, cache, tmp_path):
    original = copy_weights(name, tmp_path)
    loaded = architectures.load(name, tmp_path)
    expected = original.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert {module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)} <= {0.0}
    facts = architectures.fetch(name, tmp_path)
    assert facts["digest"].startswith("sha256:")
    assert facts["bytes"] > 10_000
    assert facts["licence"]


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "qwen3-1.7b", "smollm2-135m"])
def test_a_language_model_becomes_a_classifier_with_its_own_trunk(name, cache):
    dense = architectures.load(name, cache)
    torch.manual_seed(0)
    classifier = architectures.load(name, cache, num_classes=3)
    trunk = dense.base_model.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in classifier.base_model.state_dict().items())
    classifier.config.pad_token_id = 0
    assert classifier(torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 3)


def test_a_vision_model_takes_other_classes_and_another_side(cache):
    torch.manual_seed(0)
    published = architectures.load("vit-b-16", cache)
    model = architectures.load("vit-b-16", cache, num_classes=10, image_size=64, channels=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert torch.equal(model.encoder.layers[0].mlp[0].weight, published.encoder.layers[0].mlp[0].weight)
    with pytest.raises(BlastError, match=r"see 3 channels .* set channels: 3"):
        architectures.load("vit-b-16", cache, num_classes=10, image_size=32, channels=1)


def test_a_damaged_copy_is_refused_by_its_own_checksum(tmp_path):
    copy_weights("vit-l-16", tmp_path)
    (file,) = (tmp_path / "hub" / "checkpoints").glob("*.pth")
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(BlastError, match="wrong checksum"):
        architectures.fetch("vit-l-16", tmp_path)


def test_weights_in_several_files_are_not_taken_while_one_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    copy_weights("gpt2-xl", tmp_path)
    folder = architectures.get("gpt2-xl").weights.files("gpt2-xl").folder(tmp_path)
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 1
    parts[0].unlink()
    with pytest.raises(BlastError, match=r"gpt2-xl could not be fetched .*refused"):
        architectures.load("gpt2-xl", tmp_path)


def test_an_architecture_without_published_weights_says_which_have_some():
    with pytest.raises(BlastError, match=r"llama-nano has no published weights; .*choose one of: .*gpt2"):
        architectures.load("llama-nano")
