"""Modules with hooks keep them, and give the same tokens, while a session compiles the layers around them."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from test_fast_decode import config_of, made, prompts
from torch._dynamo.utils import counters

from blast.generation.decode import _flex_fits
from blast.generation.session import Session, hooked_around_sparse
from blast.training.compilation import repeated_blocks

PARTS = {
    "the sparse MLP": lambda block: block.mlp,
    "one of its matrices": lambda block: block.mlp.down_proj,
    "the attention": lambda block: block.self_attn,
    "a dense matrix": lambda block: block.self_attn.o_proj,
    "the layer": lambda block: block,
}


def decoded(model):
    """Tokens of a session with compiled layers, and the number of graphs that were compiled for them."""
    torch._dynamo.reset()
    counters.clear()
    session = Session(model, 3, 64, compiled="layers", prompt_compiled=True)
    session.start(*prompts().values())
    for _ in range(5):
        session.step()
    return session.tokens[:, :15], counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "part", [name if name == "the sparse MLP" else pytest.param(name, marks=pytest.mark.slow) for name in PARTS]
)
def test_hooks_run_at_each_call_and_the_tokens_are_those_of_generate(part):
    model, calls = made("llama", sparse=True), []

    def doubled(_module, _inputs, output):
        calls.append(1)
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    for block in repeated_blocks(model):
        PARTS[part](block).register_forward_hook(doubled)
    expected = model.generate(
        **prompts(), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True
    )
    assert len(calls) == 2 * 6
    calls.clear()
    tokens, _ = decoded(model)
    assert torch.equal(tokens, expected)
    # One pass more makes the cache.
    assert len(calls) == 2 * 7


@pytest.mark.slow
def test_hooked_sparse_mlps_compile_no_more_code():
    model = made("llama", sparse=True)
    _, graphs = decoded(model)
    assert graphs
    for block in repeated_blocks(model):
        block.mlp.register_forward_hook(lambda _module, _inputs, output: output + 1)
    assert decoded(model)[1] == graphs


def test_a_block_with_hooks_between_it_and_a_sparse_layer_is_not_compiled():
    model = made("gpt2", sparse=True)
    blocks = repeated_blocks(model)
    assert not hooked_around_sparse(blocks)
    outer = torch.nn.ModuleDict({"outer": blocks[0]})
    assert not hooked_around_sparse([outer])
    blocks[0].register_forward_pre_hook(lambda _module, _inputs: None)
    assert not hooked_around_sparse(blocks)
    assert hooked_around_sparse([outer])


@pytest.mark.parametrize(("family", "fits"), [("gpt2", True), ("llama", False), ("qwen3", False)])
def test_flex_attention_takes_heads_of_16_that_share_by_powers_of_two(family, fits):
    model = torch.nn.Module()
    model.config = config_of(family)
    assert _flex_fits(model) is fits
    model.config.num_attention_heads, model.config.num_key_value_heads = 4, 2
    assert _flex_fits(model) is (family == "qwen3")  # heads of 12, 12 and 16
