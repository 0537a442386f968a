"""A sparse model works like any model: generate, copy, cast, compile, train; and its memory is counted."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import transformers
from sparse_pairs import inputs_of, masked, output_of, pair, random_masks
from sparsity_models import MODELS, VOCABULARY, loss_of, tiny_llama
from torch import nn

import blast
from blast.model.convert import masks_of, to_dense, to_sparse
from blast.model.discovery import match_matrices
from blast.model.module_replacement import sparse_layers

every_model = pytest.mark.parametrize("kind", sorted(MODELS))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generate_with_a_cache_writes_what_the_masked_dense_model_writes(kind: str) -> None:
    dense, sparse, _ = pair(kind)
    tokens = inputs_of(kind)
    write = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = dense.generate(tokens, use_cache=True, **write)
    assert torch.equal(sparse.generate(tokens, use_cache=True, **write), expected)
    assert torch.equal(sparse.generate(tokens, use_cache=False, **write), expected)


def test_a_copy_of_a_sparse_model_is_independent() -> None:
    _, sparse, _ = pair("vit")
    twin, inputs = copy.deepcopy(sparse), inputs_of("vit")
    expected = output_of(sparse, inputs)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.zero_()
    assert torch.equal(output_of(twin, inputs), expected)
    to_dense(sparse)
    assert masks_of(twin)


def test_state_dicts_of_sparse_models_load() -> None:
    _, sparse, masks = pair("llama")
    other = to_sparse(MODELS["llama"](), masks, drop=True).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    assert not torch.equal(output_of(other, inputs_of("llama")), output_of(sparse, inputs_of("llama")))
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(output_of(other, inputs_of("llama")), output_of(sparse, inputs_of("llama")))


def test_a_sparse_model_can_be_cast() -> None:
    dense, sparse, _ = pair("vit")
    inputs = inputs_of("vit").double()
    torch.testing.assert_close(sparse.double()(inputs), dense.double()(inputs))
    assert sparse.encoder.layers[0].mlp[0].values.dtype == torch.float64


@every_model
def test_a_sparse_model_compiles_in_one_graph_forwards_and_backwards(kind: str) -> None:
    dense = MODELS[kind](layers=1).eval()
    sparse = to_sparse(dense, random_masks(dense), drop=True)
    inputs, grads = inputs_of(kind), []
    torch._dynamo.reset()
    for run in (sparse, torch.compile(sparse, fullgraph=True, backend="aot_eager")):
        sparse.zero_grad()
        out = output_of(run, inputs)
        out.square().mean().backward()
        grads.append([out.detach(), *(p.grad.clone() for p in sparse.parameters() if p.grad is not None)])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_compiled_model_is_converted_by_its_own_names() -> None:
    dense, sparse, masks = pair("vit")
    inputs = inputs_of("vit")
    compiled = torch.compile(dense, backend="eager")
    compiled(inputs)
    assert to_sparse(compiled, masks) is compiled
    assert masks_of(compiled).keys() == masks.keys()
    torch.testing.assert_close(compiled(inputs), sparse(inputs))
    assert to_dense(compiled) is compiled
    assert masks_of(compiled) == {}


def test_a_model_that_reads_the_weight_of_a_layer_still_runs() -> None:
    config = transformers.T5Config(
        d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    dense = transformers.T5ForConditionalGeneration(config).eval()
    masks = random_masks(dense)
    masked(dense, masks)
    sparse = to_sparse(copy.deepcopy(dense), masks)
    tokens = inputs_of("t5")
    expected = dense(input_ids=tokens, labels=tokens).logits
    torch.testing.assert_close(sparse(input_ids=tokens, labels=tokens).logits, expected)


def test_sparse_layers_compile_with_inductor() -> None:
    torch.manual_seed(0)
    # Without biases and activation nothing is left for the C++ compiler, which takes a minute on a small machine.
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False))
    to_sparse(model, {"0": torch.rand(4, 2) < 0.5, "1": torch.rand(2, 4) < 0.5}, drop=True)
    inputs, grads = torch.randn(3, 32), []
    torch._dynamo.reset()
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        out = run(inputs)
        out.backward(torch.ones_like(out))
        grads.append([out.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(grads[0], grads[1])


def test_an_optimizer_step_on_the_sparse_model_moves_live_weights_as_on_the_dense_one() -> None:
    dense, sparse, masks = pair("gpt2")
    for model in (dense, sparse):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(model, 0).backward()
        optimizer.step()
    masked(dense, masks)
    for name, tensor in to_dense(sparse).state_dict().items():
        torch.testing.assert_close(tensor, dense.state_dict()[name])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_memory_counts_every_storage_once(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    bytes_of = partial(sum, start=0)
    matrices = bytes_of(target.weight.numel() * 4 for target in match_matrices(dense))
    assert blast.model_bytes(dense).mlp == matrices
    tied = {id(p): p for p in dense.parameters()}.values()
    buffers = bytes_of(b.numel() * b.element_size() for b in dense.buffers())
    assert blast.model_bytes(dense).weights == bytes_of(p.numel() * 4 for p in tied) + buffers

    values = bytes_of(int(mask.sum()) * 16 * 16 * 4 for mask in masks.values())
    index = bytes_of(4 * (3 * int(m.sum()) + m.shape[0] + m.shape[1] + 2) for m in masks.values())
    assert blast.model_bytes(sparse).mlp == values + index
    saved = blast.model_bytes(dense).weights - blast.model_bytes(sparse).weights
    assert saved == matrices - values - index


def test_a_view_of_a_weight_takes_no_memory() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    model.register_buffer("view", model[0].weight.detach()[:2])
    assert blast.model_bytes(model) == (8 * 4 * 4, 0)


def test_matrices_left_dense_count_as_mlp_memory_too() -> None:
    model = tiny_llama()
    masks = {name: mask for name, mask in random_masks(model).items() if ".0." in name}
    dense = blast.model_bytes(model).mlp
    sparse = blast.model_bytes(to_sparse(model, masks, drop=True)).mlp
    assert dense / 2 < sparse < dense


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_model
def test_a_sparse_model_on_a_gpu_computes_and_learns_as_on_the_cpu(kind: str) -> None:
    _, sparse, _ = pair(kind)
    moved = copy.deepcopy(sparse).to("cuda")
    torch.testing.assert_close(
        output_of(moved, inputs_of(kind).cuda()).cpu(), output_of(sparse, inputs_of(kind)), atol=1e-3, rtol=1e-3
    )
    output_of(moved, inputs_of(kind).cuda()).square().mean().backward()
    output_of(sparse, inputs_of(kind)).square().mean().backward()
    for name, layer in sparse_layers(sparse).items():
        grad = sparse_layers(moved)[name].values.grad.cpu()
        torch.testing.assert_close(grad, layer.values.grad, atol=1e-3, rtol=1e-2)
    assert all(buffer.is_cuda for buffer in moved.buffers())
