"""Logits and loss in training: those of the model, without a mask also where a CUDA graph is captured."""

from __future__ import annotations

import pytest
import torch
from switch_cases import nano
from torch.nn import functional as F
from transformers import DynamicCache

from blast.training.language_loss import hidden_states, token_logits, token_loss_of

MODELS = ["gpt2-nano", "llama-nano"]
TOKENS = torch.arange(24).reshape(2, 12) % 8


@pytest.fixture
def calls(monkeypatch):
    """Mask and causality of each attention."""
    seen, attention = [], F.scaled_dot_product_attention

    def spy(*args, attn_mask=None, is_causal=False, **kwargs):
        seen.append((attn_mask, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_a_capture_makes_no_mask(name, calls, monkeypatch):
    model = nano(name)
    expected = model(TOKENS, use_cache=False).logits
    calls.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    model(TOKENS, use_cache=False)
    assert all(mask is not None for mask, _ in calls), "transformers makes none by itself: token_logits is not needed"
    calls.clear()
    assert torch.equal(token_logits(model, TOKENS), expected)
    assert calls == [(None, True)] * 2


@pytest.mark.parametrize("name", MODELS)
def test_training_keeps_no_keys_and_values_of_a_generation(name, monkeypatch):
    model, kept = nano(name), []
    update = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *given, **named: (kept.append(1), update(*given, **named))[1])
    token_logits(model, TOKENS)
    hidden_states(model, TOKENS)
    assert not kept
    model(TOKENS)
    assert kept, "transformers keeps none by itself"


@pytest.mark.parametrize("name", MODELS)
def test_the_model_stays_as_it_is(name):
    model = nano(name)
    with pytest.raises(IndexError):
        token_logits(model, TOKENS + 10**6)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    expected = model(TOKENS, use_cache=False).logits
    assert torch.equal(token_logits(model, TOKENS), expected)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_compiled_loss_and_its_gradients_are_those_of_the_model(name, wrapped, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: torch._dynamo.optimize("eager")(function))
    model, other = nano(name), nano(name)
    expected = model(TOKENS, labels=TOKENS, shift_labels=TOKENS.roll(-1, 1), use_cache=False).loss
    expected.backward()
    given = Wrapper(other) if wrapped else other
    loss = token_loss_of(True)(given, TOKENS, TOKENS.roll(-1, 1))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


class Wrapper(torch.nn.Module):
    """Stands for `DistributedDataParallel`: the model is `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)
