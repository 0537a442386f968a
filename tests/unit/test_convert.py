"""Whole models go from dense to sparse and back without loss, and stay the models they were in between."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import transformers
from sparse_pairs import inputs_of, masked, output_of, pair, random_masks
from sparsity_models import MODELS, VOCABULARY, loss_of, tiny_gpt2, tiny_llama
from torch import nn

import blast
from blast.errors import BlastError
from blast.layers.block_csr import BlockCSR
from blast.layers.block_linear import BlockLinear
from blast.layers.convert import masks_of, sparse_layers, to_dense, to_sparse
from blast.layers.recognise import find_linears

every_model = pytest.mark.parametrize("kind", sorted(MODELS))


@every_model
def test_dense_to_sparse_to_dense_gives_every_tensor_back_bit_by_bit(kind: str) -> None:
    dense, sparse, _ = pair(kind)
    back = to_dense(sparse)
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
    expected, found = dense.state_dict(), back.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
    assert torch.equal(output_of(back, inputs_of(kind)), output_of(dense, inputs_of(kind)))


@every_model
def test_a_sparse_model_computes_what_the_masked_dense_model_computes(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    assert set(sparse_layers(sparse)) == set(masks)
    torch.testing.assert_close(output_of(sparse, inputs_of(kind)), output_of(dense, inputs_of(kind)))


@every_model
def test_gradients_of_values_are_the_dense_gradient_at_live_blocks(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    loss_of(dense, 0).backward()
    loss_of(sparse, 0).backward()
    for target in find_linears(dense):
        expected = BlockCSR.from_dense(target.gradient, masks[target.name]).values
        torch.testing.assert_close(sparse.get_submodule(target.name).values.grad, expected)
    others = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
    for name, parameter in sparse.named_parameters():
        if not name.endswith(".values"):
            torch.testing.assert_close(parameter.grad, others[name])


@every_model
def test_masks_are_given_back_as_they_were_given(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    assert {name: mask.tolist() for name, mask in masks_of(sparse).items()} == {n: m.tolist() for n, m in masks.items()}
    assert masks_of(dense) == {}


def test_rectangular_blocks_and_bfloat16_convert_too() -> None:
    dense = tiny_gpt2().to(torch.bfloat16).eval()
    masks = random_masks(dense, (32, 16))
    sparse = to_sparse(masked(copy.deepcopy(dense), masks), masks, block=(32, 16))
    layer = sparse.transformer.h[0].mlp.c_fc
    assert (layer.values.dtype, tuple(layer.block)) == (torch.bfloat16, (32, 16))
    assert to_dense(sparse).transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16


def test_names_biases_flags_and_hooks_stay() -> None:
    model = tiny_gpt2()
    masks = random_masks(model)
    masked(model, masks)
    layer = model.transformer.h[0].mlp.c_fc
    layer.eval()
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    bias, names = layer.bias, [name for name, _ in model.named_modules()]

    to_sparse(model, masks)
    sparse = model.transformer.h[0].mlp.c_fc
    assert sparse.bias is bias
    assert (sparse.training, model.transformer.h[1].mlp.c_fc.training) == (False, True)
    assert (sparse.values.requires_grad, sparse.bias.requires_grad) == (False, False)
    assert [name for name, _ in model.named_modules() if not name.endswith(".index")] == names
    loss_of(model, 0)
    assert calls == [1]

    sparse.train()
    back = to_dense(model).transformer.h[0].mlp.c_fc
    assert (back.bias is bias, back.training, back.weight.requires_grad) == (True, True, False)
    loss_of(model, 0)
    assert calls == [1, 1]
    handle.remove()
    loss_of(model, 0)
    assert calls == [1, 1]


def test_tied_embeddings_stay_tied() -> None:
    _, sparse, _ = pair("gpt2")
    assert sparse.lm_head.weight is sparse.transformer.wte.weight
    assert to_dense(sparse).lm_head.weight is sparse.transformer.wte.weight


def test_gate_and_up_with_one_mask_share_one_index() -> None:
    model = tiny_llama()
    masks = random_masks(model)
    for layer in range(2):
        masks[f"model.layers.{layer}.mlp.up_proj"] = masks[f"model.layers.{layer}.mlp.gate_proj"].clone()
    to_sparse(model, masks, drop=True)
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.index is mlp.up_proj.index
    assert mlp.gate_proj.index is not mlp.down_proj.index
    assert mlp.gate_proj.index is not model.model.layers[1].mlp.gate_proj.index


class Shared(nn.Module):
    """One layer used in two places, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(8, 8)
        self.d.weight = self.c.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


def test_layers_and_weights_used_twice_stay_one() -> None:
    model, mask = Shared(), torch.eye(2, dtype=torch.bool)
    to_sparse(model, {"a": mask, "c": mask, "d": mask}, drop=True)
    assert isinstance(model.a, BlockLinear)
    assert model.b is model.a
    assert model.d.values is model.c.values
    expected = model(torch.ones(8))
    to_dense(model)
    assert model.b is model.a
    assert model.d.weight is model.c.weight
    torch.testing.assert_close(model(torch.ones(8)), expected)


def test_a_tied_weight_of_which_only_one_use_is_named_is_refused() -> None:
    mask = torch.eye(2, dtype=torch.bool)
    with pytest.raises(BlastError, match=r"the weight of 'c' is also 'd.weight', which stays dense"):
        to_sparse(Shared(), {"c": mask}, drop=True)
    with pytest.raises(BlastError, match="'c' and 'd' are one tied weight, but their masks differ"):
        to_sparse(Shared(), {"c": mask, "d": ~mask}, drop=True)


def test_weights_outside_the_mask_are_never_lost_silently() -> None:
    model = tiny_llama()
    masks = random_masks(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BlastError, match=r"'.*gate_proj' has \d+ of 32 blocks that are not zero but lie outside"):
        to_sparse(model, masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert masks_of(to_sparse(model, masks, drop=True)).keys() == masks.keys()


def test_a_nan_outside_the_mask_counts_as_a_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[3, 3] = float("nan")
    with pytest.raises(BlastError, match="has 1 of 4 blocks"):
        to_sparse(model, {"0": torch.tensor([[True, True], [True, False]])})


class Adapter(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("name", "mask", "block", "message"),
    [
        ("mlp.c_fcc", (4, 2), None, r"unknown matrix 'mlp.c_fcc'; did you mean 'mlp.c_fc'\?"),
        ("norm", (4, 2), None, "'norm' is a LayerNorm, which cannot be made block-sparse"),
        ("adapter", (4, 2), None, "'adapter' is a Adapter, which cannot be made block-sparse"),
        ("attention.out_proj", (4, 4), None, "belongs to a torch.nn.MultiheadAttention"),
        ("mlp.c_fc", (3, 2), None, r"'mlp.c_fc': a mask of 3 x 2 blocks does not tile a weight of 16 x 8"),
        ("mlp.c_fc", (4, 2), 8, r"the mask of 'mlp.c_fc' has blocks of 4, not 8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_the_name(name, mask, block, message) -> None:
    model = nn.ModuleDict(
        {
            "mlp": nn.ModuleDict({"c_fc": nn.Linear(8, 16)}),
            "norm": nn.LayerNorm(8),
            "adapter": Adapter(8, 16),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    with pytest.raises(BlastError, match=message):
        to_sparse(model, {name: torch.ones(mask, dtype=torch.bool)}, block)


def test_a_model_that_is_sparse_already_is_refused() -> None:
    _, sparse, masks = pair("vit")
    with pytest.raises(BlastError, match=r"is block-sparse already; call blast.to_dense\(model\)"):
        to_sparse(sparse, masks)


def test_save_pretrained_of_a_sparse_model_names_what_to_use(tmp_path) -> None:
    _, sparse, _ = pair("gpt2")
    for part in (sparse, sparse.transformer, copy.deepcopy(sparse)):
        with pytest.raises(BlastError, match=r"blast.save\(model, folder\), or blast.to_dense\(model\)"):
            part.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    to_dense(sparse).save_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / "model.safetensors").exists()


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


def test_a_model_compiled_before_is_converted_under_its_own_names() -> None:
    dense, sparse, masks = pair("vit")
    inputs = inputs_of("vit")
    compiled = torch.compile(dense, backend="eager")
    compiled(inputs)
    assert to_sparse(compiled, masks) is compiled
    assert masks_of(compiled).keys() == masks.keys()
    torch.testing.assert_close(compiled(inputs), sparse(inputs))
    assert to_dense(compiled) is compiled
    assert masks_of(compiled) == {}


def test_a_model_that_looks_at_the_weight_of_a_layer_still_runs() -> None:
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
    matrices = bytes_of(target.weight.numel() * 4 for target in find_linears(dense))
    assert blast.model_bytes(dense).mlp == matrices
    tied = {id(p): p for p in dense.parameters()}.values()
    buffers = bytes_of(b.numel() * b.element_size() for b in dense.buffers())
    assert blast.model_bytes(dense).weights == bytes_of(p.numel() * 4 for p in tied) + buffers

    values = bytes_of(int(mask.sum()) * 16 * 16 * 4 for mask in masks.values())
    index = bytes_of(4 * (3 * int(m.sum()) + m.shape[0] + m.shape[1] + 2) for m in masks.values())
    assert blast.model_bytes(sparse).mlp == values + index
    saved = blast.model_bytes(dense).weights - blast.model_bytes(sparse).weights
    assert saved == matrices - values - index


def test_a_view_of_a_weight_is_no_further_memory() -> None:
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
