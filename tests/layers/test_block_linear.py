"""A BlockLinear computes what the dense layer with the same weight computes, forwards and backwards."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from blast.block_sparse.blocks import BlockShape, expand_mask
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers


def layer_and_dense(
    out: int, into: int, mask: torch.Tensor, bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[BlockLinear, nn.Linear]:
    """A sparse layer and the `nn.Linear` with the same weight."""
    torch.manual_seed(0)
    dense = nn.Linear(into, out, bias=bias, dtype=dtype)
    block = BlockShape(out // mask.shape[0], into // mask.shape[1])
    with torch.no_grad():
        dense.weight.mul_(expand_mask(mask, block))
    return BlockLinear.replacing(copy.deepcopy(dense), BlockCSR.from_dense(dense.weight, mask)), dense


def some_mask(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.booleans(), st.sampled_from([(3,), (2, 3), (1, 2, 3), ()]))
def test_output_and_gradients_are_those_of_the_dense_layer_at_live_blocks(seed, bias, lead) -> None:
    mask = some_mask(4, 3, seed)
    layer, dense = layer_and_dense(16, 6, mask, bias)
    x = torch.randn(*lead, 6, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = layer(x), dense(y)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.values.grad, BlockCSR.from_dense(dense.weight.grad, mask).values)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_a_layer_without_live_blocks_gives_its_bias() -> None:
    layer, _ = layer_and_dense(8, 4, torch.zeros(2, 2, dtype=torch.bool))
    assert torch.equal(layer(torch.randn(3, 4, dtype=torch.float64)), layer.bias.expand(3, 8))


def test_only_live_values_are_stored() -> None:
    layer, _ = layer_and_dense(64, 32, torch.eye(4, 2, dtype=torch.bool))
    assert sum(p.numel() for p in layer.parameters()) == 2 * 16 * 16 + 64
    assert max(b.numel() for b in layer.buffers()) <= 5


def test_the_dense_weight_has_the_layout_of_the_dense_layer() -> None:
    mask = some_mask(4, 2)
    layer, dense = layer_and_dense(16, 4, mask)
    assert torch.equal(layer.weight, dense.weight)
    conv = Conv1D(16, 4)
    sparse = BlockLinear.replacing(conv, BlockCSR.from_dense(conv.weight.detach().t(), torch.ones_like(mask)))
    assert torch.equal(sparse.weight, conv.weight)


def test_the_dense_module_equals_the_replaced_layer() -> None:
    layer, dense = layer_and_dense(16, 4, some_mask(4, 2))
    back = layer.dense_module()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, dense.weight)
    assert back.bias is layer.bias
    fresh = BlockLinear(layer.matrix()).dense_module()
    assert (type(fresh), fresh.bias) == (nn.Linear, None)
    assert torch.equal(fresh(torch.ones(4, dtype=torch.float64)), dense.weight.sum(1))


def test_a_backward_hook_of_the_sparse_layer_is_called_by_the_dense_one_too() -> None:
    layer, _ = layer_and_dense(16, 4, some_mask(4, 2))
    calls = []
    handle = layer.register_full_backward_hook(lambda *_: calls.append(1))
    back = layer.dense_module()
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    back(x).sum().backward()
    handle.remove()
    back(x).sum().backward()
    assert calls == [1]


def test_a_frozen_weight_gives_frozen_values() -> None:
    dense = nn.Linear(4, 8).requires_grad_(False)
    matrix = BlockCSR.from_dense(dense.weight, torch.ones(2, 2, dtype=torch.bool))
    assert not BlockLinear.replacing(dense, matrix).values.requires_grad
    assert BlockLinear(matrix).values.requires_grad


def test_repr_says_block_live_and_sparsity() -> None:
    layer, _ = layer_and_dense(16, 4, torch.eye(4, 2, dtype=torch.bool))
    assert "block=4x2, live=2 of 8 blocks, sparsity=75.0%" in repr(layer)


def test_autocast_multiplies_in_the_autocast_dtype_as_a_linear_layer_does() -> None:
    layer, dense = layer_and_dense(16, 4, some_mask(4, 2), dtype=torch.float32)
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(x), dense(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    out.float().sum().backward()
    assert layer.values.grad.dtype == torch.float32


def test_layers_share_an_index_after_copying_casting_and_moving() -> None:
    index = BlockIndex.from_mask(some_mask(4, 2), (16, 4))
    shared = IndexBuffers(index)
    values = torch.randn(index.nnz, 4, 2)
    both = nn.ModuleList([BlockLinear(BlockCSR(index, values.clone()), index=shared) for _ in range(2)])
    for changed in (copy.deepcopy(both), both.to(torch.bfloat16), both.to("meta")):
        assert changed[0].index is changed[1].index
        assert len({id(buffer) for buffer in changed.buffers()}) == 5
    assert both[0].values.dtype == torch.bfloat16
    assert both[0].row_offsets.dtype == torch.int32


def test_a_layer_that_does_not_know_its_mask_takes_that_of_the_state_dict() -> None:
    other, dense = layer_and_dense(8, 4, torch.tensor([[False, True], [False, True]]))
    offsets, columns = (torch.empty(size, dtype=torch.int32, device="meta") for size in (3, 2))
    index = BlockIndex(offsets, columns, (8, 4), BlockShape(4, 2))
    first = BlockLinear(BlockCSR(index, torch.empty(2, 4, 2, device="meta")), torch.empty(8, device="meta"))
    first.load_state_dict(other.state_dict(), assign=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(first(x), dense(x))
    (grad,) = torch.autograd.grad(first(x).sum(), x)
    torch.testing.assert_close(grad, dense.weight.sum(0).expand(3, 4))
    with pytest.raises(BlastError, match="another mask"):
        first.load_state_dict(layer_and_dense(8, 4, torch.eye(2, dtype=torch.bool))[0].state_dict())


@pytest.mark.parametrize("columns", [[0, 5], [1, 0]], ids=["out of range", "swapped"])
def test_a_state_dict_with_another_index_is_refused(columns) -> None:
    layer, _ = layer_and_dense(8, 4, torch.eye(2, dtype=torch.bool))
    state = layer.state_dict()
    state["index.col_indices"] = torch.tensor(columns, dtype=torch.int32)
    with pytest.raises(BlastError, match=r"another mask for 'BlockLinear': 2 live blocks, .* has 2 at other places"):
        layer.load_state_dict(state)
    assert layer.index.index.cpu_index.col_indices.tolist() == [0, 1]


def test_wrong_shapes_are_refused_with_both_sizes() -> None:
    index = BlockIndex.from_mask(torch.ones(2, 2, dtype=torch.bool), (8, 4))
    with pytest.raises(BlastError, match=r"the bias must be \[8\], but is \[4\]"):
        BlockLinear(BlockCSR(index, torch.zeros(4, 4, 2)), torch.zeros(4))
    twin = BlockIndex.from_mask(torch.ones(2, 2, dtype=torch.bool), (8, 4))
    with pytest.raises(BlastError, match="build both from one BlockIndex"):
        BlockLinear(BlockCSR(index, torch.zeros(4, 4, 2)), index=IndexBuffers(twin))
    layer, _ = layer_and_dense(8, 4, torch.eye(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="last dimension must be 4"):
        layer(torch.zeros(3, 5, dtype=torch.float64))
