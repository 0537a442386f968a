"""Blocks under `torch.compile`: one compilation for all of them, in training alone, and nothing of it stays."""

from __future__ import annotations

import pytest
import torch
from switch_cases import nano, nano_loss, sparsify, steps
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from blast.layers import training_mlp
from blast.training import compilation


@pytest.fixture
def counter(monkeypatch):
    """A backend that counts graphs and runs them as they are: no C++ compiler is needed."""
    torch.compiler.reset()
    made = CompileCounter()
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: plain(module, backend=made))
    yield made
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "kind"), [("gpt2-nano", "GPT2Block"), ("llama-nano", "LlamaDecoderLayer")])
def test_the_blocks_of_a_model_are_found(name, kind):
    blocks = compilation.repeated_blocks(nano(name))
    assert len(blocks) > 1
    assert {type(block).__name__ for block in blocks} == {kind}


def test_a_model_without_blocks_is_compiled_as_a_whole(counter):
    class Plain(nn.Module):
        def forward(self, x):
            return x.sin() + 1

    model = Plain()
    assert compilation.repeated_blocks(model) == []
    compilation.compile_blocks(model)
    model(torch.zeros(2, 4))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_one_compilation_serves_all_blocks_and_changes_no_name(counter, name):
    model = nano(name)
    # A cache of keys and values would tell one block from another.
    model.config.use_cache = False
    blocks = compilation.repeated_blocks(model)
    names, expected = list(model.state_dict()), nano_loss(model, 0)
    compilation.compile_blocks(model)
    assert model._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(nano_loss(model, 0), expected)
    assert counter.frame_count == 1 < len(blocks)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(nano_loss(model.eval(), 0), expected)
    compilation.release_blocks(model)
    nano_loss(model.eval(), 0)
    assert counter.frame_count == 1


def test_the_switch_to_sparse_costs_a_few_compilations_and_mask_updates_none(counter):
    settings = {"execution": "sparse", "break_even": 0.55}
    expected = steps(sparsify("llama-nano", **settings))
    ours = sparsify("llama-nano", **settings)
    ours.model.config.use_cache = False
    compilation.compile_blocks(ours.model)
    losses, frames = [], []
    for last in range(1, 13):
        losses += steps(ours, last)
        frames.append((ours.execution, counter.frame_count))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=0)
    masked = [count for state, count in frames if state == "masked"]
    assert set(masked) == {1}
    sparse = [count for state, count in frames if state == "sparse"]
    assert set(sparse[1:]) == {3}


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_the_cast_of_an_mlps_input_is_compiled_with_what_makes_it(counter, monkeypatch, name):
    seen, run = [], training_mlp.run_uncompiled
    monkeypatch.setattr(training_mlp, "run_uncompiled", lambda x, *rest: (seen.append(x.dtype), run(x, *rest))[1])
    expected = steps(sparsify(name, execution="sparse"), autocast=True)
    # The norm before the MLP computes in float32.
    assert set(seen) == {torch.float32}
    ours = sparsify(name, execution="sparse")
    ours.model.config.use_cache = False
    compilation.compile_blocks(ours.model)
    seen.clear()
    losses = steps(ours, autocast=True)
    assert set(seen) == {torch.bfloat16}
    # Of a block one graph up to the MLP, and one for the sum after it.
    assert counter.frame_count == 2
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(2, 5), (7,)])
def test_the_loss_is_that_of_float32_logits(shape):
    logits = torch.randn(*shape, 11, dtype=torch.bfloat16)
    targets = torch.randint(11, shape)
    expected = F.cross_entropy(logits.float().view(-1, 11), targets.view(-1))
    assert torch.equal(compilation.cross_entropy(logits, targets), expected)
