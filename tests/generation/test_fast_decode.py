"""`blast.fast_decode` gives the tokens of `model.generate`, whatever the settings, also after weights changed."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

import blast
from blast.generation.decode import FAMILIES, _sessions, forget_sessions
from blast.generation.session import Session, weights_in_place

VOCABULARY = 61


# With weights as small as those that models start with, tokens depend little on the tokens before.
SPREAD = 0.2


def config_of(family):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 96,
             "initializer_range": SPREAD}  # fmt: skip
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=48, n_inner=96, n_layer=2, n_head=3, n_positions=96, initializer_range=SPREAD
        )
    return transformers.AutoConfig.for_model(family, **sizes, **({"head_dim": 16} if family == "qwen3" else {}))


def made(family, sparse=False, layers=2):
    torch.manual_seed(0)
    config = config_of(family)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * layers
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if sparse:
        masks = {
            target.name: torch.rand(target.shape[0] // 16, target.shape[1] // 16) < 0.4
            for mlp in blast.find_mlps(model)
            for target in mlp.targets
        }
        blast.fuse(blast.to_sparse(model, masks, drop=True))
    return model


def prompts(padding=0, batch=3, tokens=9):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        ids[1, :padding] = mask[1, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def both(model, seed=0, **settings):
    """What `generate` gives without and with `fast_decode`."""
    found = []
    for decode in ({}, {"custom_generate": blast.fast_decode}):
        torch.manual_seed(seed)
        found.append(model.generate(**{"pad_token_id": 0, "eos_token_id": None} | settings | decode))
    return found


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_generate(family, sparse, padding):
    expected, found = both(made(family, sparse), **prompts(padding), max_new_tokens=40, do_sample=False)
    assert found.shape == (3, 49)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 9},
        {"do_sample": True, "top_p": 0.6, "top_k": 0},
        {"do_sample": True, "min_p": 0.1, "top_k": 0},
        {"do_sample": False, "repetition_penalty": 1.4},
        {"do_sample": False, "no_repeat_ngram_size": 2},
        {"do_sample": True, "repetition_penalty": 1.2, "temperature": 1.5},
        {"do_sample": False, "min_new_tokens": 20, "eos_token_id": 7},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_processors_of_the_logits_have_the_same_effect(settings):
    expected, found = both(made("llama"), **prompts(), max_new_tokens=30, **settings)
    assert torch.equal(found, expected)


def first_tokens(model, count):
    """Tokens that the prompts really produce, to end sequences with."""
    return model.generate(**prompts(), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 9:]


@pytest.mark.parametrize("at", [0, 5, 15, 20])
def test_sequences_end_where_those_of_generate_end(at):
    model = made("llama")
    new = first_tokens(model, 30)
    ends = [int(token) for token in new[:, at]]
    for chosen in ([ends[0]], ends):
        expected, found = both(model, **prompts(), max_new_tokens=30, do_sample=False, eos_token_id=chosen)
        assert torch.equal(found, expected)
    assert found.shape[1] <= 9 + at + 1


class EndsAfter(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **_):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_other_stopping_criteria_are_asked_at_each_step():
    criteria = StoppingCriteriaList([EndsAfter(14)])
    expected, found = both(made("gpt2"), **prompts(), max_new_tokens=30, do_sample=False, stopping_criteria=criteria)
    assert found.shape[1] == 14
    assert torch.equal(found, expected)


def test_a_streamer_gets_the_prompt_and_each_token():
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got.append(value.reshape(-1))

        def end(self):
            self.ended = True

    streamer, model = Streamer(), made("llama")
    out = model.generate(
        **prompts(batch=1), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None,
        custom_generate=functools.partial(blast.fast_decode, streamer=streamer),
    )  # fmt: skip
    assert streamer.ended
    assert [len(part) for part in streamer.got] == [9] + [1] * 12
    assert torch.equal(torch.cat(streamer.got), out[0])
    with pytest.raises(blast.BlastError, match="passes no streamer"):
        model.generate(**prompts(batch=1), max_new_tokens=5, streamer=streamer, custom_generate=blast.fast_decode)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_that_read_the_whole_cache_with_a_mask_give_the_same(family):
    """As graphs do it."""
    model = made(family, sparse=True)
    for padding in (0, 4):
        given = prompts(padding)
        expected = both(model, **given, max_new_tokens=20, do_sample=False)[0]
        session = Session(model, 3, 64, static=True)
        session.start(given["input_ids"], given["attention_mask"] if padding else None)
        for _ in range(19):
            session.step()
        assert session.length == 29
        assert torch.equal(session.tokens[:, :29], expected)


def test_weights_and_masks_may_change_between_calls():
    model, given = made("llama", sparse=True), prompts()
    first = both(model, **given, max_new_tokens=20, do_sample=False)[1]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.values.mul_(-3)
    expected, second = both(model, **given, max_new_tokens=20, do_sample=False)
    assert torch.equal(second, expected)
    assert not torch.equal(second, first)
    blast.unfuse(model)
    blast.to_dense(model)
    for mlp in blast.find_mlps(model):
        mlp.up.module.weight.data[:48] = 0
    expected, third = both(model, **given, max_new_tokens=20, do_sample=False)
    assert torch.equal(third, expected)


def test_new_places_of_weights_or_masks_are_seen_and_new_values_are_none():
    """A graph reads places: it has to be captured again for others, and for nothing else."""
    model = made("llama", sparse=True)
    before = weights_in_place(model)
    layer = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.values.mul_(2)
    assert weights_in_place(model) == before
    layer.values = torch.nn.Parameter(layer.values.detach().clone())
    moved = weights_in_place(model)
    assert moved != before
    blast.unfuse(model)
    assert weights_in_place(model) != moved


def test_a_session_is_used_again_and_dies_with_its_model():
    model = made("gpt2")
    for tokens in (5, 7):
        both(model, **prompts(tokens=tokens), max_new_tokens=10, do_sample=False)
    (session,) = _sessions[model].values()
    for batch in (1, 2):
        both(model, **prompts(batch=batch), max_new_tokens=10, do_sample=False)
    assert len(_sessions[model]) == 2
    known = weakref.ref(session)
    del session
    gc.collect()
    assert known() is None
    forget_sessions(model)
    assert model not in _sessions
    both(model, **prompts(), max_new_tokens=10, do_sample=False)
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 3}, "searches with beams"),
        ({"return_dict_in_generate": True}, "more than tokens"),
        ({"max_new_tokens": 90}, "9 tokens of prompt and 90 new ones are more than the 96 of the model"),
        ({"input_ids": None, "attention_mask": None, "inputs_embeds": torch.zeros(1, 4, 48)}, "embeddings, not tokens"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(settings, words):
    with pytest.raises(blast.BlastError, match=words) as caught:
        made("llama").generate(
            **prompts() | {"max_new_tokens": 5, "pad_token_id": 0} | settings, custom_generate=blast.fast_decode
        )
    assert "\n" not in str(caught.value)


def test_other_families_and_models_in_training_are_refused():
    phi = transformers.PhiConfig(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2)  # fmt: skip
    for model, words in (
        (transformers.PhiForCausalLM(phi).eval(), "'phi' is no model of the families gpt2"),
        (made("llama").train(), "in training"),
    ):
        with pytest.raises(blast.BlastError, match=words):
            model.generate(**prompts(), max_new_tokens=5, pad_token_id=0, custom_generate=blast.fast_decode)


def test_a_model_with_attention_to_a_window_is_refused():
    config = config_of("qwen2")
    config.use_sliding_window, config.sliding_window = True, 4
    config.layer_types = ["full_attention", "sliding_attention"]
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(blast.BlastError, match="window"):
        model.generate(**prompts(), max_new_tokens=5, pad_token_id=0, custom_generate=blast.fast_decode)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["layers", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_steps_give_the_same_and_are_compiled_once(family, compiled):
    torch.compiler.reset()
    model, given = made(family, sparse=True, layers=5), prompts(4)
    expected = both(model, **given, max_new_tokens=20, do_sample=False)[0]
    session = Session(model, 3, 64, static=True, compiled=compiled)
    torch._dynamo.utils.counters.clear()
    session.start(given["input_ids"], given["attention_mask"])
    for _ in range(19):
        session.step()
    assert torch.equal(session.tokens[:, :29], expected)
    eager = Session(model, 3, 64)
    eager.start(given["input_ids"], given["attention_mask"])
    for _ in range(19):
        eager.step()
    torch.testing.assert_close(session.logits, eager.logits, rtol=1e-3, atol=1e-4)
    # A layer is two pieces, before and after its MLP.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == (1 if compiled == "whole" else 2)
