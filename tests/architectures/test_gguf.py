"""Weights in one GGUF file, as the packaged SmolLM2 comes: a small Llama written in that format is loaded again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_copies import sentences, shrunk

import blast
from blast import architectures
from blast.architectures import llama
from blast.datasets._text.tokenizer import train_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as the format wants them: both halves of a head's rotation side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _write(model: torch.nn.Module, shape: architectures.ModelShape, tokenizer, file: Path) -> None:
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab)
    words = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if word == "<|endoftext|>" else normal for word in words])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", values)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", values)
        elif name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            if part.endswith("q_proj"):
                values = _interleaved(values, shape.heads)
            if part.endswith("k_proj"):
                values = _interleaved(values, shape.kv_heads)
            writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The packaged SmolLM2 shrunk, in the cache; returns the model it was written from."""
    tokenizer = train_tokenizer(sentences(30), 400, tmp_path / "tokenizer")
    shape = replace(shrunk("smollm2-135m"), vocab=tokenizer.get_vocab_size())
    torch.manual_seed(0)
    model = llama.build(shape)
    known = architectures.get("smollm2-135m-q4")
    file = tmp_path / "packaged" / "smollm2-135m-q4" / known.weights.gguf
    file.parent.mkdir(parents=True)
    _write(model, shape, tokenizer, file)
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    small = replace(known, weights=replace(known.weights, checksums=sums))
    monkeypatch.setattr(architectures, "get", lambda name: small)
    return model, tokenizer


def test_weights_and_tokenizer_of_a_gguf_file_are_those_it_was_written_from(packaged, tmp_path):
    model, tokenizer = packaged
    loaded = architectures.load("smollm2-135m-q4", tmp_path)
    assert type(loaded) is type(model)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    tokens = torch.arange(30).view(1, 30)
    assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-5)
    from tokenizers import Tokenizer

    folder = architectures.tokenizer_folder("smollm2-135m-q4", tmp_path)
    again = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = sentences(1, seed=5)[0]
    assert again.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids


def test_a_gguf_model_takes_the_memory_of_its_weights_once(packaged, tmp_path, monkeypatch):
    from blast.architectures._weights import packaged as opener

    held = {}
    take_over = opener._take_over

    def spy(model, loaded):
        held.update({name: parameter.data_ptr() for name, parameter in loaded.named_parameters()})
        take_over(model, loaded)

    monkeypatch.setattr(opener, "_take_over", spy)
    model = architectures.load("smollm2-135m-q4", tmp_path)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == held
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_from_a_gguf_file_is_sparsified_saved_and_loaded(packaged, tmp_path):
    model = architectures.load("smollm2-135m-q4", tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = blast.SparsifyConfig(sparsity=0.5, block=16, steps=3, update_every=1)
    sparsifier = blast.Sparsifier(model, optimizer, config)
    tokens = torch.arange(64).view(2, 32)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    blast.to_sparse(model, sparsifier.masks)
    blast.save(model, tmp_path / "checkpoint")
    again = blast.load(tmp_path / "checkpoint")
    assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-5)


def test_a_classifier_keeps_the_trunk_of_a_gguf_file(packaged, tmp_path):
    model, _ = packaged
    classifier = architectures.load("smollm2-135m-q4", tmp_path, num_classes=3)
    trunk = model.base_model.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in classifier.base_model.state_dict().items())
