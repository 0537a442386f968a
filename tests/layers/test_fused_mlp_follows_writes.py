"""A fused MLP computes with the parameters that its layers have now, however they were changed, compiled or not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import blast
from blast.layers.sparse_mlp import SparseMlp


def sparse_model(shared: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=64))).double()
    shapes = {"gate": (4, 2), "up": (4, 2), "down": (2, 4)}
    masks = {f"0.{name}_proj": torch.rand(shape) < 0.6 for name, shape in shapes.items()}
    if shared:
        masks["0.up_proj"] = masks["0.gate_proj"]
    return blast.to_sparse(model, masks, drop=True)


def fused_model(shared: bool = False) -> nn.Module:
    return blast.fuse(sparse_model(shared)).requires_grad_(True)


def expected(model: nn.Module, x: Tensor) -> Tensor:
    """The MLP in plain PyTorch, from the dense weights of its layers."""
    gate, up, down = (layer.weight.detach().to(x.dtype) for layer in model[0].layers)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def values_of(model: nn.Module) -> list[nn.Parameter]:
    return [layer.values for layer in model[0].layers]


def with_optimizer(**options: bool) -> Callable[[nn.Module], None]:
    def step(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    return step


def through_data(model: nn.Module) -> None:
    for parameter in values_of(model):
        parameter.data.mul_(1.5)


def new_data(model: nn.Module) -> None:
    for parameter in values_of(model):
        parameter.data = parameter.data * 1.5


def copied(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in values_of(model):
            parameter.copy_(torch.randn_like(parameter))


def swapped(model: nn.Module) -> None:
    for parameter in values_of(model):
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.randn_like(parameter)))


def from_vector(model: nn.Module) -> None:
    vector_to_parameters(1.5 * parameters_to_vector(model.parameters()).detach(), model.parameters())


def loaded(assign: bool) -> Callable[[nn.Module], None]:
    def load(model: nn.Module) -> None:
        state = {key: 2 * t if t.is_floating_point() else t.clone() for key, t in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return load


def replaced(model: nn.Module) -> None:
    for layer in model[0].layers:
        layer.values = nn.Parameter(torch.randn_like(layer.values))


def through_numpy(model: nn.Module) -> None:
    for parameter in values_of(model):
        parameter.detach().numpy()[...] *= 1.5


WRITES = {
    "fused AdamW": with_optimizer(fused=True),
    "foreach AdamW": with_optimizer(foreach=True),
    "AdamW": with_optimizer(foreach=False),
    "data": through_data,
    "new data": new_data,
    "copy_": copied,
    "swap_tensors": swapped,
    "vector_to_parameters": from_vector,
    "load_state_dict": loaded(assign=False),
    "load_state_dict with assign": loaded(assign=True),
    "new parameter": replaced,
    "numpy": through_numpy,
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_takes_effect_at_once(write, compiled) -> None:
    model, x = fused_model(), torch.randn(3, 32, dtype=torch.float64)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        before = run(x)
        torch.testing.assert_close(before, expected(model, x), rtol=1e-10, atol=1e-12)
    WRITES[write](model)
    with torch.no_grad():
        after = run(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, expected(model, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_an_average_of_the_weights_computes_with_the_average(compiled) -> None:
    model, x = fused_model(shared=True), torch.randn(3, 32, dtype=torch.float64)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    run = torch.compile(average, backend="aot_eager") if compiled else average
    with torch.no_grad():
        run(x)
    average.update_parameters(model)
    copied(model)
    average.update_parameters(model)
    with torch.no_grad():
        out = run(x)
    torch.testing.assert_close(out, expected(average.module, x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(out, expected(model, x), rtol=1e-2)


def test_a_functional_call_computes_with_the_parameters_it_is_given() -> None:
    model, x = fused_model(), torch.randn(3, 32, dtype=torch.float64)
    given = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict(given, strict=False)
    with torch.no_grad():
        out = torch.func.functional_call(model, given, (x,))
    torch.testing.assert_close(out, expected(other, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_cast_takes_effect(dtype) -> None:
    model, x = fused_model().to(dtype), torch.randn(3, 32, dtype=torch.float64)
    with torch.no_grad():
        out = model(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected(model, x), rtol=3e-2, atol=3e-3)


def test_inference_tensors_can_be_fused_and_written() -> None:
    with torch.inference_mode():
        model, x = blast.fuse(sparse_model()), torch.randn(3, 32, dtype=torch.float64)
        torch.testing.assert_close(model(x), expected(model, x), rtol=1e-10, atol=1e-12)
        for parameter in values_of(model):
            parameter.mul_(1.5)
        torch.testing.assert_close(model(x), expected(model, x), rtol=1e-10, atol=1e-12)


def test_a_fused_model_of_llamas_sizes_holds_each_weight_once() -> None:
    config = LlamaConfig(hidden_size=2048, intermediate_size=8192)
    torch.manual_seed(0)
    with torch.device("meta"):
        dense = nn.Sequential(LlamaMLP(config)).bfloat16()
    masks = {}
    for name, (rows, cols) in {"gate": (64, 16), "up": (64, 16), "down": (16, 64)}.items():
        masks[f"0.{name}_proj"] = torch.rand(rows, cols) < 0.2
    dense = dense.to_empty(device="cpu")
    with torch.no_grad():
        for weight in dense.parameters():
            weight.fill_(0.01)
    sparse = blast.to_sparse(dense, masks, drop=True)
    before = blast.model_bytes(sparse).weights
    fused = blast.fuse(sparse)
    assert isinstance(fused[0], SparseMlp)
    assert before < blast.model_bytes(fused).weights <= 1.005 * before
