"""The computed memory of inference is that of models that are really built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from live_memory import LiveMemory

import blast
from blast import architectures
from blast.architectures.architecture import Architecture
from blast.architectures.inference_memory import Sparse, activation_bytes, inference_memory, kv_cache_bytes
from blast.block_sparse.blocks import keep_count
from blast.errors import BlastError
from blast.layers.sparse_mlp import SparseMlp


def small(name: str, **sizes) -> Architecture:
    """An architecture of a real family with small sizes."""
    known = architectures.get(name)
    sizes = {"layers": 2, "hidden": 128, "ffn": 384, "heads": 4, "kv_heads": 2, "vocab": 512, "context": 256} | sizes
    if not known.shape.gated:
        sizes["kv_heads"] = sizes["heads"]
    return replace(known, shape=replace(known.shape, head_dim=32, **sizes))


def exact_masks(model: torch.nn.Module, sparse: Sparse) -> dict[str, torch.Tensor]:
    """Masks with exactly as many live blocks as the sparsity asks for, at random places."""
    rows_of, cols_of = (sparse.block, sparse.block) if isinstance(sparse.block, int) else sparse.block
    masks = {}
    for mlp in blast.find_mlps(model):
        for target in mlp.targets:
            rows, cols = target.shape[0] // rows_of, target.shape[1] // cols_of
            mask = torch.zeros(rows * cols, dtype=torch.bool)
            mask[torch.randperm(rows * cols)[: keep_count(rows * cols, sparse.sparsity)]] = True
            masks[target.name] = mask.view(rows, cols)
        if sparse.tied and mlp.gate is not None:
            masks[mlp.gate.name] = masks[mlp.up.name]
    return masks


def built(architecture: Architecture, device: str = "cpu") -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return architectures._builder(architecture)(architecture.shape)


GRID = [
    None,
    Sparse(sparsity=0.5, block=32),
    Sparse(sparsity=0.8, block=16),
    Sparse(sparsity=0.95, block=16, tied=True),
    Sparse(sparsity=0.9, block=(8, 32)),
]


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "smollm2-135m", "qwen3-1.7b"])
@pytest.mark.parametrize("sparse", GRID, ids=str)
def test_weights_and_indices_are_those_of_a_built_model(name: str, sparse: Sparse | None) -> None:
    architecture = small(name)
    model = built(architecture)
    if sparse is not None:
        blast.to_sparse(model, exact_masks(model, sparse), drop=True)
    computed = inference_memory(architecture, sparse, element=4)
    found = blast.model_bytes(model)
    assert computed.dense + computed.mlp + computed.index == found.weights
    assert computed.mlp + computed.index == found.mlp


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "qwen3-1.7b"])
def test_lists_of_the_fused_kernels_are_estimated_well(name: str) -> None:
    architecture = small(name, hidden=512, ffn=1536, heads=16)
    sparse = Sparse(sparsity=0.8, block=16)
    model = built(architecture)
    blast.fuse(blast.to_sparse(model, exact_masks(model, sparse), drop=True))
    computed, found = inference_memory(architecture, sparse, element=4), blast.model_bytes(model).weights
    lists = sum(tensor.nbytes for mlp in model.modules() if isinstance(mlp, SparseMlp) for tensor in mlp.extra_tensors)
    assert lists > 0
    assert computed.row_lists == pytest.approx(lists, rel=0.5)
    assert computed.weights == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the model cards give them, in billions.
        ("gpt2", 0.1244), ("gpt2-xl", 1.558), ("llama-3.2-1b", 1.236), ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554), ("llama-3.1-405b", 405.853), ("smollm2-135m", 0.1345), ("qwen3-1.7b", 1.7206),
    ],
)  # fmt: skip
def test_dense_weights_are_as_many_as_the_published_model_has(name: str, parameters: float) -> None:
    assert inference_memory(architectures.get(name)).weights / 2e9 == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"])
def test_large_models_are_as_large_as_computed(name: str) -> None:
    """On the meta device. A cast to bfloat16 casts the frequencies too, which loading leaves in float32."""
    architecture = architectures.get(name)
    sparse = Sparse(sparsity=0.95, block=128)
    model = built(architecture, "meta").bfloat16()
    assert blast.model_bytes(model).weights == pytest.approx(inference_memory(architecture).weights, abs=1024)
    blast.to_sparse(model, exact_masks(model, sparse))
    computed = inference_memory(architecture, sparse)
    assert blast.model_bytes(model).weights == pytest.approx(computed.weights - computed.row_lists, abs=1024)


def test_the_largest_llama_is_four_times_smaller_with_its_indices() -> None:
    dense, ours = (
        inference_memory(architectures.get("llama-3.1-405b"), sparse)
        for sparse in (None, Sparse(sparsity=0.95, block=128))
    )
    assert dense.weights / ours.weights > 4.38
    assert ours.index + ours.row_lists < 0.001 * ours.weights


def test_keys_and_values_are_those_that_transformers_holds() -> None:
    for name in ("gpt2", "llama-3.1-8b", "qwen3-1.7b"):
        architecture = small(name)
        model = built(architecture).eval()
        with torch.no_grad():
            cache = model(torch.zeros(3, 20, dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == kv_cache_bytes(architecture.shape, 3, 20, element=4)
        assert inference_memory(architecture, batch=3, context=20, element=4).kv_cache == held


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("fused", [False, True])
def test_activations_of_a_forward_pass_are_about_as_computed(batch: int, fused: bool) -> None:
    architecture = small("llama-3.1-8b", hidden=256, ffn=896, heads=8, vocab=1000)
    model = built(architecture).bfloat16().eval()
    if fused:
        blast.fuse(blast.to_sparse(model, exact_masks(model, Sparse(sparsity=0.9, block=32)), drop=True))
    words = torch.zeros(batch, 512, dtype=torch.long)
    with torch.inference_mode():
        model(words[:, :2])
        with LiveMemory() as memory:
            model(words, use_cache=True, logits_to_keep=1)
    held = memory.peak - kv_cache_bytes(architecture.shape, batch, 512)
    # Inside an operator nothing is seen on a CPU: the hidden activations of a fused MLP.
    hidden = 2 * batch * 512 * architecture.shape.ffn if fused else 0
    computed = activation_bytes(architecture.shape, batch, batch * 512, fused=fused)
    assert held <= 1.15 * computed
    assert held + hidden >= 0.85 * computed


def test_several_gpus_share_matrices_and_cache_but_no_cache_head_is_cut() -> None:
    llama = architectures.get("llama-3.1-70b")
    sparse = Sparse(sparsity=0.9)
    settings = {"batch": 8, "context": 4096, "tokens_at_once": 2048}
    one, eight, sixteen = (inference_memory(llama, sparse, gpus=gpus, **settings) for gpus in (1, 8, 16))
    assert eight.mlp == one.mlp / 8
    assert eight.dense == pytest.approx(one.dense / 8, rel=0.01)
    assert eight.dense > one.dense / 8, "norms are on each GPU"
    assert eight.kv_cache == one.kv_cache / 8 == sixteen.kv_cache
    assert one.activations > eight.activations > one.activations / 8
    assert one.total == sum((one.dense, one.mlp, one.index, one.row_lists, one.kv_cache, one.activations))


def test_what_cannot_be_computed_is_one_sentence() -> None:
    for name in ("vit-b-16", "gpt2-nano", "minilm"):
        with pytest.raises(BlastError, match=rf"not for '{name}'; choose for instance llama-3.1-8b"):
            inference_memory(architectures.get(name))
    with pytest.raises(BlastError, match="block 100 does not divide 'the gate projection'"):
        inference_memory(architectures.get("llama-3.1-8b"), Sparse(sparsity=0.5, block=100))
