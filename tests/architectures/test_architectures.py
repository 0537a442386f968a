"""Models by name: sizes, construction, and errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from blast import architectures
from blast.architectures import architecture
from blast.errors import BlastError

NANO_SIZES = {
    "gpt2-nano": {"vocab_size": 512},
    "llama-nano": {"vocab_size": 512},
    "vit-nano": {"num_classes": 10, "image_size": 28, "channels": 1},
    "gpt2-nano-wide": {"vocab_size": 512},
    "vit-nano-wide": {"num_classes": 10, "image_size": 28, "channels": 1},
    "vit-s-4": {"num_classes": 10, "image_size": 28, "channels": 1},
}
PACKAGED = {"minilm", "smollm2-135m-q4"}
# Parameter counts as published: the models' cards, and torchvision's documentation.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen3-1.7b": 1_720_574_976,
    "smollm2-135m": 134_515_008,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
}


def _build(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return architectures.build(name, **NANO_SIZES[name])


def test_every_architecture_is_found_by_its_family_file():
    assert set(PUBLISHED) | set(NANO_SIZES) | PACKAGED <= set(architectures.names())
    assert architectures.get("smollm2-135m").family == "llama"


def test_family_files_are_read_once():
    assert architectures.get("gpt2") is architectures.get("gpt2")


def test_looking_at_names_and_shapes_imports_no_torch():
    code = (
        "import sys; from blast import architectures as a; a.names(); a.prunable('gpt2-xl'); a.legal_blocks('gpt2');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_models_have_exactly_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = architectures.build(name)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", NANO_SIZES)
def test_prunable_matrices_are_the_ones_that_the_model_has(name):
    model, shape = _build(name), architectures.get(name).shape
    found = [weight.shape for weight in model.parameters() if weight.ndim == 2]
    for _, rows, cols in architectures.prunable(name):
        # GPT-2 stores its matrices the other way round.
        assert found.count((rows, cols)) + found.count((cols, rows)) >= shape.layers
    assert shape.mlp_weights == shape.layers * sum(rows * cols for _, rows, cols in architectures.prunable(name))


@pytest.mark.parametrize("name", NANO_SIZES)
def test_nano_models_can_be_cut_into_blocks_of_32(name):
    assert {16, 32} <= set(architectures.legal_blocks(name))


def test_legal_blocks_leave_out_what_does_not_divide():
    assert architectures.legal_blocks("gpt2-xl") == [8, 16, 32, 64]
    assert architectures.legal_blocks("smollm2-135m", (64, 128)) == [64]


@pytest.mark.parametrize("name", NANO_SIZES)
def test_initial_weights_depend_on_the_seed_alone(name):
    first, again, other = (_build(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_language_models_predict_every_token_and_have_no_dropout(name):
    model = _build(name).train()
    tokens = torch.randint(0, 512, (2, 32))
    first, again = model(tokens).logits, model(tokens).logits
    assert first.shape == (2, 32, 512)
    assert torch.equal(first, again)


def test_no_model_has_dropout():
    for name in ("gpt2-nano", "llama-nano", "minilm", "vit-nano"):
        sizes = NANO_SIZES.get(name, {})
        with torch.device("meta"):
            model = architectures.build(name, **sizes)
        rates = {layer: module.p for layer, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
        assert set(rates.values()) <= {0.0}, (name, rates)


def test_the_files_of_a_tokenizer_are_plain_values(tmp_path):
    files = architecture.TokenizerFiles(digest="sha256:1", write=Path.mkdir)
    assert files == architecture.TokenizerFiles("sha256:1", Path.mkdir)
    files.write(tmp_path / "made")
    assert (tmp_path / "made").is_dir()
    with pytest.raises(FrozenInstanceError):
        files.digest = "sha256:2"


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (8, 1), (32, 3)])
def test_the_patch_of_vit_nano_follows_the_image(size, channels):
    model = architectures.build("vit-nano", num_classes=10, image_size=size, channels=channels)
    assert model.patch_size == size // 4
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_images_that_patches_do_not_tile_are_refused_with_both_numbers():
    with pytest.raises(BlastError, match=r"100 pixels.*multiple of 16"):
        architectures.build("vit-b-16", image_size=100)


def test_a_missing_size_that_only_the_dataset_knows_is_an_error():
    with pytest.raises(BlastError, match="gpt2-nano has no size of its own for vocab"):
        architectures.build("gpt2-nano")


def test_an_unknown_architecture_suggests_the_nearest_name():
    with pytest.raises(BlastError, match="did you mean 'gpt2-nano'"):
        architectures.get("gpt2-nanno")
