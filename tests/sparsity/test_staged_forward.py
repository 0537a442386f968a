"""Running one layer at a time gives what whole forward passes give, and is refused where layers do not just follow."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import blast
from blast.sparsity import one_shot_calibrated
from blast.sparsity.one_shot_calibrated import prune_once_
from blast.sparsity.staged_forward import staged_forward

COMMON = {"vocab_size": 64}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **COMMON)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, **COMMON)),
    # Layers with and without a sliding window get different masks.
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **LLAMA, **COMMON, num_key_value_heads=1, head_dim=16, sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
}  # fmt: skip


def forward(model, tokens):
    return model(tokens, use_cache=False).logits


def batches() -> list[torch.Tensor]:
    return [torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("kind", MODELS)
def test_pruning_layer_by_layer_equals_pruning_with_whole_passes(kind, monkeypatch):
    torch.manual_seed(0)
    model, calls = MODELS[kind]().eval(), {"staged": 0, "whole": 0}
    config = blast.SparsifyConfig(sparsity=0.5, block=8, steps=1, keep_score="obs", targets=("mlp",))
    found = {}
    for way in calls:
        if way == "whole":
            monkeypatch.setattr(one_shot_calibrated, "_staged", lambda *_: None)
        pruned = copy.deepcopy(model)
        last = [module for module in pruned.modules() if isinstance(module, nn.ModuleList)][-1][-1]
        handle = last.register_forward_hook(lambda *_, way=way: calls.__setitem__(way, calls[way] + 1))
        masks = prune_once_(pruned, config, batches(), forward)
        handle.remove()
        found[way] = masks, pruned.state_dict()
    masks, weights = found["staged"]
    assert all(torch.equal(masks[name], found["whole"][0][name]) for name in masks)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, found["whole"][1][name], rtol=0, atol=0)
    # Whole passes: of three batches for the scores and for each of six stages.
    assert calls["whole"] == 3 * 7
    # Scores, the two trials, and the two stages of the last layer.
    assert calls["staged"] == 3 + 2 + 2 * 3


def test_layers_come_back_as_they_were_after_an_error():
    model = MODELS["llama"]().eval()
    staged = staged_forward(model, "model.layers", forward, batches())
    staged.go_to(2)
    own = model.model.layers[2].mlp.forward

    def fail(*_):
        raise RuntimeError("no")

    model.model.layers[2].mlp.forward = fail
    with pytest.raises(RuntimeError, match="no"):
        staged(model, 0)
    model.model.layers[2].mlp.forward = own
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


class Reused(nn.Module):
    """A stack whose layers see more than the hidden state of the one before."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        first = self.layers[0](x)
        if self.way == "twice":
            return self.layers[2](self.layers[1](self.layers[1](first)))
        if self.way == "skipped":
            return self.layers[2](first)
        return self.layers[2](self.layers[1](first) + first)


@pytest.mark.parametrize("way", ["twice", "skipped", "joined"])
def test_layers_that_do_not_simply_follow_each_other_are_not_run_one_by_one(way):
    torch.manual_seed(0)
    assert staged_forward(Reused(way), "layers", lambda model, x: model(x), [torch.randn(2, 4)]) is None


class Counted(nn.Module):
    """A layer that leaves its input behind, which the next one reads."""

    def __init__(self, left: list | dict, number: int) -> None:
        super().__init__()
        self.linear, self.left, self.number = nn.Linear(4, 4), left, number

    def forward(self, x):
        if isinstance(self.left, list):
            self.left.append(x)
        else:
            self.left[self.number] = x
        return self.linear(x) + (self.left[self.number - 1] if self.number else 0)


@pytest.mark.parametrize("kind", [list, dict])
def test_layers_that_read_what_an_earlier_one_left_are_not_run_one_by_one(kind):
    left = kind()
    model = nn.Module()
    model.layers = nn.ModuleList([Counted(left, number) for number in range(3)])

    def forward(model, x):
        left.clear()
        for layer in model.layers:
            x = layer(x)
        return x

    assert staged_forward(model, "layers", forward, [torch.randn(2, 4)]) is None
