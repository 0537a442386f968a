"""Prompts are compiled once for all lengths."""

from __future__ import annotations

import pytest
import torch
from test_fast_decode import both, made, prompts
from torch._dynamo.utils import counters

from blast.generation.session import Session


def check(model, session: Session, tokens: int, padding: int) -> None:
    given = prompts(padding, tokens=tokens)
    expected = both(model, **given, max_new_tokens=6, do_sample=False)[0]
    session.start(given["input_ids"], given["attention_mask"] if padding else None)
    for _ in range(5):
        session.step()
    assert torch.equal(session.tokens[:, : tokens + 6], expected)
    # Tokens may agree by chance.
    eager = Session(model, *given["input_ids"].shape[:1], session.capacity)
    eager.start(given["input_ids"], given["attention_mask"] if padding else None)
    cached = slice(None), slice(None), slice(None), slice(padding, tokens)
    for name in ("keys", "values"):
        torch.testing.assert_close(getattr(session.cache, name)[cached], getattr(eager.cache, name)[cached])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "compiled"), [("gpt2", "layers"), ("qwen3", "layers"), ("llama", "whole")])
def test_a_new_length_of_a_prompt_is_not_compiled_again(family, compiled):
    torch.compiler.reset()
    model = made(family, sparse=True, layers=3)
    session = Session(model, 3, 64, static=True, compiled=compiled, prompt_compiled=True)
    check(model, session, 9, padding=0)
    check(model, session, 9, padding=4)
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    for tokens, padding in ((5, 0), (17, 0), (30, 0), (12, 3), (31, 7)):
        check(model, session, tokens, padding)
    assert counters["stats"]["unique_graphs"] == before


def test_the_cache_exists_before_the_first_compiled_prompt(monkeypatch):
    """Compiled layers take their part of it."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = made("llama", sparse=True)
    session, seen = Session(model, 3, 64, static=True, compiled="layers", prompt_compiled=True), []
    run = session._run_layer
    monkeypatch.setattr(
        session, "_run_layer", lambda *given, **named: seen.append(session.cache.bytes) or run(*given, **named)
    )
    check(model, session, 9, padding=0)
    check(model, session, 12, padding=4)
    assert len(seen) == 2 * 12
    assert len(set(seen)) == 1
    assert seen[0] > 0
