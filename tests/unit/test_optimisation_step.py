"""Which steps are launched, captured and replayed, with graphs that compute on a CPU what they would on a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from switch_cases import nano_loss, sparsify
from torch import nn

from blast.layers.block_linear import BlockLinear
from blast.training import optimisation_step
from blast.training.optimisation_step import OptimisationStep

STEPS, EVERY = 16, 4
CASES = {
    "masked": {"execution": "masked"},
    # The last update right after another one.
    "trimmed": {"execution": "masked", "hold": 3 / 16},
    "switching": {"execution": "sparse", "break_even": 0.55},
    "sparse": {"execution": "sparse", "grow": "swap"},
    "dense": None,
}


class Graph:
    """Runs its work at each replay, counted once as in a capture."""

    def __init__(self, replay):
        self.replay = replay


class Memory:
    """Stands for `GraphMemory`; counts captures."""

    def __init__(self, one):
        self.one, self.captures, self.counted = one, 0, False

    def give_way(self):
        """There is room."""

    def captured(self, gradients, rest):
        self.captures += 1
        self.counted = False
        optimizer, sparsifier = self.one._optimizer, self.one._sparsifier

        def again():
            if not self.counted or sparsifier is None:
                rest()
                self.counted = True
            else:
                # What a capture holds of the sparsifier's step: the host has counted it already.
                stepped = sparsifier._accumulation._stepped
                sparsifier._clear_dead()
                self.one._norm = self.one._clipped()
                optimizer.step()
                # A replay calls no hooks.
                sparsifier._accumulation._stepped = stepped

        def once_more():
            # Gradients stay where they were captured, and a replay knows nothing of who watches since.
            optimizer.zero_grad(set_to_none=False)
            if sparsifier is not None:
                sparsifier.remember()
                layers = [module for module in sparsifier.model.modules() if isinstance(module, BlockLinear)]
                watches = [layer.watch for layer in layers]
                for layer in layers:
                    layer.watch = None
            gradients()
            if sparsifier is not None:
                for layer, watch in zip(layers, watches, strict=True):
                    layer.watch = watch

        return [Graph(once_more), Graph(again)]


def trained(case, monkeypatch=None, seen=None):
    """Losses, and the sparsifier or model, of some steps; with graphs if there is a monkeypatch to make them up.

    `seen` takes the batch of each loss that is made.
    """

    def loss_of(model, batch):
        if seen is not None:
            seen.append(batch[0])
        return nano_loss(model, int(batch[0][0, 0]))

    ours = sparsify("llama-nano", steps=STEPS, update_every=EVERY, **(CASES[case] or {"execution": "masked"}))
    sparsifier = None if CASES[case] is None else ours
    one = OptimisationStep(ours.model, ours.optimizer, loss_of, 0.5, sparsifier)
    memory = None
    if monkeypatch is not None:
        stream = type("Stream", (), {"wait_stream": lambda *_: None})()
        monkeypatch.setattr(optimisation_step.torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(optimisation_step.torch.cuda, "stream", lambda _: nullcontext())
        memory = Memory(one)
        one.graphs, one._stream, one._memory, one._rate = True, stream, memory, torch.zeros(())
    norms = []
    # As a training loop cuts inputs out of a longer row: with strides, and not from the start of its memory.
    rows = [torch.full((2, 4), step)[:, 1:] for step in range(STEPS)]
    losses = [one.run((row,), check_norm=norms.append) for row in rows]
    return losses, norms, ours, memory


@pytest.mark.parametrize("case", CASES)
def test_steps_with_graphs_are_those_without(case, monkeypatch):
    expected, norms, plain, _ = trained(case)
    losses, seen, ours, memory = trained(case, monkeypatch)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(norms), rtol=1e-4, atol=0)
    if CASES[case] is not None:
        assert ours.step_count == plain.step_count == STEPS
        assert all(torch.equal(mask, plain.masks[name]) for name, mask in ours.masks.items())
    # Masked-dense one capture serves all masks; in the sparse state each mask has its own.
    updates = [step for step in range(STEPS) if step % EVERY == 0]
    assert {"masked": 1, "trimmed": 1, "dense": 1, "sparse": len(updates)}.get(case, memory.captures) == memory.captures
    if case == "trimmed":
        assert ours.config.final_step == updates[-1] + 1
    if case == "switching":
        assert 1 < memory.captures < len(updates) + 1


@pytest.mark.parametrize("case", CASES)
def test_launched_and_captured_steps_read_their_batch_in_one_place(case, monkeypatch):
    """What is compiled for the one serves the other: a capture cannot compile."""
    seen = []
    trained(case, monkeypatch, seen)
    assert len({(batch.data_ptr(), batch.stride()) for batch in seen}) == 1
    assert seen[0].is_contiguous()
    assert seen[0].data_ptr() % 16 == 0


def test_a_mask_update_of_replayed_steps_stops_at_a_gradient_that_is_not_finite(monkeypatch):
    """Before masks, weights or moments are touched."""
    ours = sparsify("llama-nano", steps=STEPS, update_every=EVERY, execution="masked")

    def loss_of(model: nn.Module, batch):
        loss = nano_loss(model, 0)
        return loss * float("nan") if int(batch[0]) == EVERY else loss

    one = OptimisationStep(ours.model, ours.optimizer, loss_of, 0.5, ours)
    stream = type("Stream", (), {"wait_stream": lambda *_: None})()
    monkeypatch.setattr(optimisation_step.torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(optimisation_step.torch.cuda, "stream", lambda _: nullcontext())
    one.graphs, one._stream, one._memory = True, stream, Memory(one)
    for step in range(EVERY):
        one.run((torch.tensor(step),))
    weights = {name: value.clone() for name, value in ours.model.state_dict().items()}
    masks = {name: mask.clone() for name, mask in ours.masks.items()}

    def finite(value):
        if not torch.isfinite(torch.tensor(value)):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        one.run((torch.tensor(EVERY),), finite, finite)
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())
    assert all(torch.equal(mask, masks[name]) for name, mask in ours.masks.items())
