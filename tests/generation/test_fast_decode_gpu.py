"""`blast.fast_decode` with CUDA graphs."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo
from test_fast_decode import both, made, prompts

import blast
from blast.generation.decode import _sessions
from blast.generation.session import Session

pytestmark = pytest.mark.gpu


def on_gpu(family, sparse=True):
    return made(family, sparse).cuda()


def given(padding=0, batch=3, tokens=9):
    return {name: part.cuda() for name, part in prompts(padding, batch, tokens).items()}


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_replayed_steps_give_the_tokens_of_generate(family, sparse, padding):
    model = on_gpu(family, sparse)
    for _ in range(2):  # captured, then replayed from the first step on
        expected, found = both(model, **given(padding), max_new_tokens=40, do_sample=False)
        assert torch.equal(found, expected)
    (session,) = _sessions[model].values()
    assert session.graphs
    assert session._graph is not None


def test_graphs_without_compiling_give_the_tokens_of_generate():
    model = on_gpu("llama")
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(**given(4), **settings)
    for _ in range(2):
        decode = functools.partial(blast.fast_decode, compiled=False)
        assert torch.equal(model.generate(**given(4), **settings, custom_generate=decode), expected)
    (session,) = _sessions[model].values()
    assert session.compiled == "no"
    assert session._graph is not None


def test_a_prompt_of_another_length_is_not_compiled_again():
    model = on_gpu("llama")
    for tokens in (9, 12):
        both(model, **given(tokens=tokens), max_new_tokens=10, do_sample=False)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for tokens in (5, 17, 30):
        expected, found = both(model, **given(tokens=tokens), max_new_tokens=10, do_sample=False)
        assert torch.equal(found, expected)
        *_, session = _sessions[model].values()
        eager = Session(model, 3, session.capacity)
        eager.start(given(tokens=tokens)["input_ids"])
        for name in ("keys", "values"):
            cached = (getattr(each.cache, name)[:, :, :, :tokens] for each in (session, eager))
            torch.testing.assert_close(*cached, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_replays_follow_weights_and_masks():
    model = on_gpu("llama")
    before = both(model, **given(), max_new_tokens=20, do_sample=False)[1]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.values.mul_(-3)
    expected, found = both(model, **given(), max_new_tokens=20, do_sample=False)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    blast.to_dense(blast.unfuse(model))
    expected, found = both(model, **given(), max_new_tokens=20, do_sample=False)
    assert torch.equal(found, expected)


def test_sampling_in_a_graph_draws_other_tokens_each_time():
    model = on_gpu("llama")
    settings = {"max_new_tokens": 30, "do_sample": True, "temperature": 2.0, "top_k": 20}
    first, second = (both(model, seed, **given(), **settings)[1] for seed in (0, 1))
    again = both(model, 0, **given(), **settings)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first[:, 9:].tolist()}) == 3


@pytest.mark.parametrize("flex", [False, True])
def test_both_kinds_of_attention_agree_with_generate(flex):
    model = on_gpu("qwen2" if not flex else "gpt2")
    expected = both(model, **given(4), max_new_tokens=30, do_sample=False)[0]
    session = Session(model, 3, 96, graphs=True, compiled="layers", flex=flex)
    session.start(*given(4).values())
    for _ in range(29):
        session.step()
    assert torch.equal(session.tokens[:, :39], expected)
