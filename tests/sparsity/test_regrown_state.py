"""Warm regrown state: a grown block trains as if Adam had started when it grew."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import blast
from blast.errors import BlastError
from blast.sparsity import regrown_state
from blast.sparsity.adam_restart import moment_factors

BETAS = (0.9, 0.99)
ADAMW = {"lr": 0.01, "betas": BETAS, "weight_decay": 0.1}
WARMUP = 4
STEPS = 20


def small() -> nn.Module:
    """An MLP with a plain and a transposed weight, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(16, 64), nn.GELU(), Conv1D(16, 64))).double()


def config(**settings) -> blast.SparsifyConfig:
    given = {"sparsity": 0.75, "block": 8, "steps": STEPS, "update_every": 6, "initial_sparsity": 0.5, **settings}
    warm = {"regrown_state": "warm", "regrown_warmup": WARMUP, "execution": "masked", "targets": "*"}
    return blast.SparsifyConfig(**{**warm, **given})


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs, wanted = (torch.randn(8, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    (model(inputs) - wanted).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def train(model, optimizer, sparsifier, steps) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        sparsifier.step()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


class Reference:
    """Adam in float64 for one matrix `[out, in]`, where each weight has a step count of its own.

    Args:
        weight: The weight before the first step.
        decoupled: Whether weight decay is that of AdamW.
    """

    def __init__(self, weight: torch.Tensor, decoupled: bool) -> None:
        self.weight, self.decoupled = weight.clone(), decoupled
        self.m, self.v = torch.zeros_like(weight), torch.zeros_like(weight)
        self.total = 0
        self.own = torch.zeros_like(weight)
        # Weights whose own count is the one that matters.
        self.young = torch.zeros_like(weight, dtype=torch.bool)

    def grow(self, grown: torch.Tensor, born: int) -> None:
        for kept in (self.m, self.v, self.weight):
            kept[grown] = 0
        self.young[grown] = True
        self.own[grown] = born

    def step(self, gradient: torch.Tensor, lr: float, decay: float, warmup: int) -> None:
        self.total += 1
        self.own += 1
        if not self.decoupled:
            gradient = gradient + decay * self.weight
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * gradient
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * gradient**2
        count = torch.where(self.young, self.own.clamp_min(1), torch.full_like(self.own, self.total))
        rate = lr * torch.where(self.young, (self.own / warmup).clamp(0, 1), torch.ones_like(self.own))
        m, v = self.m / (1 - BETAS[0] ** count), self.v / (1 - BETAS[1] ** count)
        if self.decoupled:
            self.weight = self.weight * (1 - lr * decay)
        self.weight = self.weight - rate * m / (v.sqrt() + 1e-8)
        # After their own steps, moments without bias are handed over to the count of the optimizer.
        done = self.young & (self.own >= warmup)
        self.m = torch.where(done, m * (1 - BETAS[0] ** self.total), self.m)
        self.v = torch.where(done, v * (1 - BETAS[1] ** self.total), self.v)
        self.young &= ~done


def expand(mask: torch.Tensor) -> torch.Tensor:
    return mask.repeat_interleave(8, 0).repeat_interleave(8, 1)


@pytest.mark.parametrize(
    ("kind", "options", "grow_score", "warmup"),
    [
        (torch.optim.AdamW, {"foreach": False}, "gradient", WARMUP),
        (torch.optim.AdamW, {"foreach": True}, "random", 1),
        (torch.optim.AdamW, {"fused": True}, "random", WARMUP),
        # Longer than the run: each block has its own count to the end.
        (torch.optim.AdamW, {"fused": True}, "gradient", 50),
        (torch.optim.Adam, {"foreach": True}, "gradient", WARMUP),
    ],
)
def test_a_grown_block_trains_as_if_adam_had_started_at_its_growth(kind, options, grow_score, warmup):
    model = small()
    optimizer = kind(model.parameters(), **ADAMW, **options)
    sparsifier = blast.Sparsifier(model, optimizer, config(grow_score=grow_score, regrown_warmup=warmup))
    first, second = model[0][0].weight, model[0][2].weight
    matrices = {"0.0": lambda tensor: tensor, "0.2": lambda tensor: tensor.t()}
    decoupled = kind is torch.optim.AdamW
    references = {
        name: Reference(view(weight.detach()), decoupled)
        for (name, view), weight in zip(matrices.items(), (first, second), strict=True)
    }
    grew = 0
    for step in range(STEPS):
        before = sparsifier.masks
        optimizer.zero_grad()
        backward(model, step)
        sparsifier.step()
        for name, view in matrices.items():
            reference, live = references[name], expand(sparsifier.masks[name])
            grown = live & ~expand(before[name])
            grew += int(grown.sum())
            # At step 0 Adam itself starts.
            if grown.any() and (step or grow_score == "random"):
                reference.grow(grown, 0 if grow_score == "gradient" else -1)
            gradient = view(model.get_submodule(name).weight.grad)
            assert not gradient[~live].any()
            if grow_score == "random":
                assert not gradient[grown].any()
            reference.step(gradient, ADAMW["lr"], ADAMW["weight_decay"], warmup)
            reference.weight[~live] = 0
            reference.m[~live] = 0
            reference.v[~live] = 0
        optimizer.step()
        for name, view in matrices.items():
            assert torch.allclose(
                view(model.get_submodule(name).weight.detach()), references[name].weight, rtol=1e-9, atol=1e-12
            ), (name, step)
    assert grew > 64 * 4


def test_moments_of_a_block_that_starts_with_the_optimizer_are_not_changed():
    step = torch.arange(1, 9).double()
    for beta in BETAS:
        keep, add = moment_factors(beta, step, step)
        assert torch.allclose(keep[1:], torch.ones(7).double(), atol=1e-12)
        assert torch.allclose(add, torch.zeros(8).double(), atol=1e-12)


@pytest.mark.parametrize(("grow", "grow_score"), [("union", "gradient"), ("swap", "random")])
def test_masked_and_sparse_training_agree(grow, grow_score):
    results = []
    for execution, break_even in (("masked", None), ("sparse", None), ("sparse", 0.6)):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        settings = config(grow=grow, grow_score=grow_score, execution=execution, break_even=break_even)
        sparsifier = blast.Sparsifier(model, optimizer, settings)
        train(model, optimizer, sparsifier, range(STEPS))
        assert sparsifier.execution == execution
        results.append((sparsifier.masks, dict(blast.to_dense(model).named_parameters())))
    (masks, weights), *others = results
    for other_masks, other_weights in others:
        assert all(torch.equal(mask, other_masks[name]) for name, mask in masks.items())
        for name, weight in weights.items():
            assert torch.allclose(weight, other_weights[name], atol=1e-9), name


# Two steps after an update, just after an update, and after all corrections.
@pytest.mark.parametrize(("execution", "cut"), [("masked", 8), ("sparse", 8), ("sparse", 7), ("masked", 19)])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(execution, cut):
    def make():
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        return model, optimizer, blast.Sparsifier(model, optimizer, config(execution=execution, grow_score="random"))

    whole = make()
    train(*whole, range(STEPS))
    first, second = make(), make()
    train(*first, range(cut))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in reversed(first)], file)
    file.seek(0)
    for part, state in zip(reversed(second), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, range(cut, STEPS))
    for part, other in zip(whole, second, strict=True):
        flat, of_other = (torch.utils._pytree.tree_leaves(each.state_dict()) for each in (part, other))
        assert len(flat) == len(of_other)
        for ours, theirs in zip(flat, of_other, strict=True):
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_state_that_a_framework_loaded_first_is_continued():
    def make(state=None):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        given = None if state is None else state[2]
        return model, optimizer, blast.Sparsifier(model, optimizer, config(), state=given)

    whole = make()
    train(*whole, range(8))
    second = make(copy.deepcopy([part.state_dict() for part in whole]))
    train(*whole, range(8, STEPS))
    train(*second, range(8, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True))


def test_nothing_is_corrected_but_in_the_first_steps_after_growth(monkeypatch):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    sparsifier = blast.Sparsifier(model, optimizer, config(update_every=7, grow_score="random"))
    corrected = []
    monkeypatch.setattr(regrown_state.CountedBatch, "correct", lambda *_: corrected.append(sparsifier.step_count - 1))
    train(model, optimizer, sparsifier, range(STEPS))
    # A block that grows at random makes its first step in the next one.
    assert corrected == [step + n for step in (0, 7, 14) for n in range(WARMUP + 1)]


def test_several_optimizers_of_adam_are_corrected_each_in_its_own_step():
    runs = []
    for several in (False, True):
        model = small()
        one, other = model[0][0].parameters(), model[0][2].parameters()
        if several:
            optimizers = [torch.optim.AdamW(one, **ADAMW), torch.optim.AdamW(other, **ADAMW)]
        else:
            optimizers = [torch.optim.AdamW(model.parameters(), **ADAMW)]
        sparsifier = blast.Sparsifier(model, optimizers, config())
        for step in range(STEPS):
            model.zero_grad()
            backward(model, step)
            sparsifier.step()
            for optimizer in optimizers:
                optimizer.step()
        runs.append(list(model.parameters()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "restarts the moments of Adam, but SGD trains the matrices; use torch"),
        (lambda p: torch.optim.NAdam(p), "but NAdam trains the matrices; use torch.optim.AdamW or Adam, or regrown"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "does not know AdamW with amsgrad; use torch.optim.AdamW with"),
        (lambda p: torch.optim.Adam(p, betas=(0.0, 0.9)), "needs betas of Adam above 0; use torch.optim.AdamW with"),
    ],
)
def test_an_optimizer_that_is_not_plain_adam_is_refused_at_once(make, message):
    model = small()
    with pytest.raises(BlastError, match=message):
        blast.Sparsifier(model, make(model.parameters()), config())
    blast.Sparsifier(model, make(model.parameters()), config(regrown_state="zero"))


def test_another_optimizer_may_train_what_is_not_pruned():
    model = small()
    biases = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() == 2]
    blast.Sparsifier(model, [torch.optim.SGD(biases, lr=0.1), torch.optim.AdamW(matrices)], config())


def test_a_sharded_model_is_refused(monkeypatch):
    monkeypatch.setattr(regrown_state, "is_sharded", lambda tensor: True)
    model = small()
    with pytest.raises(BlastError, match="cannot train a model in fully_shard; set regrown_state to 'zero', or pass"):
        blast.Sparsifier(model, torch.optim.AdamW(model.parameters()), config())


def test_a_fused_optimizer_under_a_gradient_scaler_is_refused():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    sparsifier = blast.Sparsifier(model, optimizer, config())
    backward(model, 0)
    sparsifier.step()
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(
        BlastError, match="may skip one unseen; create the optimizer with fused=False, or train in bfloat16"
    ):
        optimizer.step()


def test_a_saved_state_without_the_counts_is_refused():
    model = small()
    sparsifier = blast.Sparsifier(model, torch.optim.AdamW(model.parameters()), config())
    state = sparsifier.state_dict()
    del state["regrown_steps"]
    with pytest.raises(BlastError, match="lacks 'regrown_steps'; give a result"):
        sparsifier.load_state_dict(state)
    assert (
        "regrown_steps"
        not in blast.Sparsifier(model, torch.optim.AdamW(model.parameters()), config(regrown_state="zero")).state_dict()
    )
