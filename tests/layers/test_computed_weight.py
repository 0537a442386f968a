"""The dense weight of a block-sparse layer can be read, and a write to it raises."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import blast
from blast.block_sparse.csr import BlockCSR
from blast.errors import BlastError


@pytest.fixture(params=[False, True], ids=["linear", "conv1d"])
def layer(request):
    torch.manual_seed(0)
    matrix = BlockCSR.from_dense(torch.randn(16, 32), torch.rand(2, 4) < 0.6)
    made = blast.BlockLinear(matrix)
    made.transposed = request.param
    return made


WRITES = {
    "mul_": lambda w: w.mul_(2),
    "an operator": lambda w: w.__iadd__(1),
    "over data": lambda w: w.data.copy_(torch.zeros_like(w.data)),
    "over detach": lambda w: w.detach().zero_(),
    "a row": lambda w: w[0].fill_(1),
    "an index": lambda w: w.__setitem__(0, 1.0),
    "a view": lambda w: w.t().add_(1),
    "initialisation": nn.init.xavier_uniform_,
    "out": lambda w: torch.mul(w, 2, out=w),
    "data itself": lambda w: setattr(w, "data", torch.zeros(1)),
    "freezing": lambda w: w.requires_grad_(False),
    "freezing by attribute": lambda w: setattr(w, "requires_grad", False),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_raises_and_says_what_to_do(layer, write):
    before = layer.values.detach().clone()
    with torch.no_grad(), pytest.raises(BlastError, match=r"would be lost; write to `values`, call blast\.to_dense"):
        WRITES[write](layer.weight)
    assert torch.equal(layer.values, before)


def test_reading_gives_plain_tensors_and_gradients(layer):
    weight, x = layer.weight, torch.randn(3, 32)
    dense = weight.t() if layer.transposed else weight
    product = x @ dense.t()
    assert type(product) is type(weight + 0) is type(weight.sum()) is type(weight.clone()) is torch.Tensor
    assert torch.allclose(product, layer(x), atol=1e-5)
    product.sum().backward()
    expected = BlockCSR.from_dense(x.sum(0).expand(16, 32), layer.mask()).values
    assert torch.allclose(layer.values.grad, expected, atol=1e-5)
    assert weight.clone().mul_(2).sum().item() == pytest.approx(2 * weight.sum().item(), rel=1e-5)
    assert torch.zeros_like(weight).copy_(weight).equal(weight)
    assert torch.empty(0, dtype=weight.dtype).dtype == weight.dtype
    assert torch.equal(copy.deepcopy(weight.detach()), pickle.loads(pickle.dumps(weight.detach())))


def test_a_model_that_asks_for_the_dtype_of_a_weight_compiles(layer):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.to(self.layer.weight.dtype))

    x = torch.randn(3, 32, dtype=torch.float64)
    with torch.no_grad():
        got = torch.compile(Asks(), backend="eager", fullgraph=True)(x)
        assert torch.allclose(got, layer(x.float()), atol=1e-6)
