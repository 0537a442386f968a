"""A sparse model is written as a dense one that stock tools open, with its tokenizer or image processor."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from language_case import trained_tokenizer
from safetensors.torch import load_file
from sparse_pairs import inputs_of, output_of, pair, plain
from torch import nn

import blast
from blast.errors import BlastError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of 400 tokens."""
    return trained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tiny(vocabulary: int = 400) -> nn.Module:
    """A sparse GPT-2 of one layer."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=vocabulary, n_positions=32)
    model = transformers.GPT2LMHeadModel(config).eval()
    masks = {f"transformer.h.0.mlp.{name}": torch.eye(2, dtype=torch.bool) for name in ("c_fc", "c_proj")}
    return blast.to_sparse(model, masks, drop=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_export_of_a_model_is_the_dense_model(kind: str, tmp_path: Path) -> None:
    dense, sparse, masks = pair(kind)
    sparse.generation_config.max_new_tokens = 7
    blast.export_dense(sparse, tmp_path / "dense")
    assert blast.masks_of(sparse).keys() == masks.keys()
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert type(opened) is type(dense)
    assert opened.generation_config.max_new_tokens == 7
    expected = dense.state_dict()
    assert opened.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
    assert torch.equal(output_of(opened, inputs_of(kind)), output_of(dense, inputs_of(kind)))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_fused_model_is_exported_too(tmp_path: Path) -> None:
    dense, sparse, _ = pair("llama")
    blast.export_dense(blast.fuse(sparse), tmp_path / "dense")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(output_of(opened, inputs_of("llama")), output_of(dense, inputs_of("llama")))


def test_a_vision_transformer_is_its_state_dict_and_its_arguments(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    dense, sparse, _ = pair("vit")
    blast.export_dense(sparse, tmp_path / "dense")
    arguments = json.loads((tmp_path / "dense" / "vision_transformer.json").read_text())
    channels, eps = arguments.pop("in_channels"), arguments.pop("norm_eps")
    opened = VisionTransformer(**arguments, norm_layer=partial(nn.LayerNorm, eps=eps)).eval()
    opened.load_state_dict(load_file(tmp_path / "dense" / "model.safetensors"))
    assert channels == 3
    assert torch.equal(opened(inputs_of("vit")), dense(inputs_of("vit")))


def test_a_checkpoint_holds_its_tokenizer_and_the_export_too(tokenizer, tmp_path: Path) -> None:
    blast.save(tiny(), tmp_path / "sparse", processing_class=tokenizer)
    blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    text = "def f(x):\n    return x"
    for folder in ("sparse", "dense"):
        found = transformers.AutoTokenizer.from_pretrained(tmp_path / folder, local_files_only=True)
        assert found(text).input_ids == tokenizer(text).input_ids
        assert found.eos_token == tokenizer.eos_token


def test_a_pipeline_opens_a_checkpoint(tokenizer, tmp_path: Path) -> None:
    model = tiny()
    blast.save(model, tmp_path, processing_class=tokenizer)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), max_new_tokens=4, do_sample=False)
    assert type(pipe.model.transformer.h[0].mlp.c_fc).__name__ == "BlockLinear"
    ids = torch.tensor([tokenizer.encode("import os")])
    expected = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert pipe("import os")[0]["generated_text"] == tokenizer.decode(expected[0])


def test_an_image_processor_is_stored(tmp_path: Path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4))
    blast.save(model, tmp_path / "sparse", processing_class=processor)
    blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    for folder in ("sparse", "dense"):
        found = transformers.AutoImageProcessor.from_pretrained(tmp_path / folder)
        assert found.size == processor.size
    assert transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "dense").config.image_size == 8


def test_saving_again_keeps_the_tokenizer_of_the_same_model_only(tokenizer, tmp_path: Path) -> None:
    blast.save(tiny(), tmp_path, processing_class=tokenizer)
    blast.save(tiny(), tmp_path)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) == 400
    blast.save(tiny(500), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_tokenizer_of_another_model_is_refused(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(BlastError, match="has 400 tokens and the model embeds 96, so it belongs to another model"):
        blast.save(tiny(96), tmp_path, processing_class=tokenizer)
    with pytest.raises(BlastError, match="a Tokenizer cannot be stored as processing_class"):
        blast.save(tiny(), tmp_path, processing_class=tokenizer.backend_tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BlastError, match="empty holds no files of a tokenizer"):
        blast.save(tiny(), tmp_path / "model", processing_class=tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_altered_tokenizer_is_noticed(tokenizer, tmp_path: Path) -> None:
    blast.save(tiny(), tmp_path / "sparse", processing_class=tokenizer)
    file = tmp_path / "sparse" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.warns(UserWarning, match=r"tokenizer.json is missing or was altered after the model was saved"):
        blast.load(tmp_path / "sparse")
    with (
        pytest.raises(BlastError, match=r"tokenizer.json is missing or was altered .* pass processing_class"),
        pytest.warns(UserWarning, match="altered"),
    ):
        blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(BlastError, match="thesis is not an empty folder"):
        blast.export_dense(tiny(), tmp_path / "thesis")
    with pytest.raises(BlastError, match=r"a Plain .* has no format that other tools open"):
        blast.export_dense(plain(), tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
