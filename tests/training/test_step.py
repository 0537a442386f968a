"""Which steps run eagerly, are captured, or are replayed; the graphs are fakes that compute on the CPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from switch_cases import nano_loss, sparsify
from torch import nn

from blast.layers import sparse_mlp
from blast.layers.block_linear import BlockLinear
from blast.layers.dense_gradient import DenseGradient
from blast.layers.training_mlp import TrainingMlp
from blast.training import step as step_module
from blast.training.step import OptimizationStep

STEPS, EVERY = 16, 4
CASES = {
    "masked": {"execution": "masked"},
    # The last update right after another one.
    "trimmed": {"execution": "masked", "hold": 3 / 16},
    "switching": {"execution": "sparse", "break_even": 0.55},
    "sparse": {"execution": "sparse", "grow": "swap"},
    # Warm regrown state: a mask update adds work to a step, so that a capture serves one mask.
    "warm": {"execution": "masked", "regrown_state": "warm", "regrown_warmup": 3},
    "warm switching": {
        **{"execution": "sparse", "break_even": 0.55, "regrown_state": "warm", "regrown_warmup": 2},
        "grow_score": "random",
    },
    "dense": None,
}


class Graph:
    """Runs its work at each replay, counted once as in a capture."""

    def __init__(self, replay):
        self.replay = replay


class Memory:
    """Stands for `GraphMemory`; counts captures."""

    def __init__(self, one):
        self.one, self.captures, self.counted, self.launched, self.released = one, 0, False, [], 0
        self.was_short, self.splits = False, 0

    def release(self, short):
        self.released += 1
        self.was_short |= short

    def capture(self, forward, backward, rest):
        self.captures += 1
        self.counted = False
        optimizer, sparsifier = self.one._optimizer, self.one._sparsifier
        # A captured backward pass makes its gradients; to one that is there, each replay would add.
        assert all(parameter.grad is None for parameter in self.one._parameters)
        hidden = {}

        def first():
            # Gradients stay where they were captured, and a replay does not see accumulators attached since.
            optimizer.zero_grad(set_to_none=False)
            if sparsifier is not None:
                sparsifier.cuda_graphs.retain_activations()
                layers = [module for module in sparsifier.model.modules() if isinstance(module, BlockLinear)]
                hidden.update({layer: layer.dense_gradient for layer in layers})
                for layer in layers:
                    layer.dense_gradient = None
            forward()

        def second():
            backward()
            for layer, gradient in hidden.items():
                layer.dense_gradient = gradient
            hidden.clear()

        def third():
            if not self.counted or sparsifier is None:
                rest()
                self.counted = True
            else:
                # What a capture holds of the sparsifier's step: the CPU has counted it already.
                gradient, regrown = sparsifier._checks.accumulation._gradient, sparsifier._regrown
                if regrown is not None:
                    regrown._left = {key: left + 1 for key, left in regrown._left.items()}
                sparsifier._clear_dead()
                self.one._norm = self.one._clip_gradients()
                optimizer.step()
                # A replay calls no hooks.
                sparsifier._checks.accumulation._gradient = gradient

        graphs = [Graph(work) for work in (first, second, third)]
        for graph in graphs:
            before = self.splits
            graph.replay()
            assert self.splits - before == (step_module.BACKWARD_PARTS - 1 if graph is graphs[1] else 0)
        return graphs

    def split(self):
        self.splits += 1


def trained(case, monkeypatch=None, seen=None, fault=None, steps=STEPS):
    """Losses, and the sparsifier or model, of some steps; with graphs if there is a monkeypatch to make them up.

    `seen` takes the batch of each loss that is made; `fault` prepares the sparsifier for one.
    """

    def loss_of(model, batch):
        if seen is not None:
            seen.append(batch[0])
        return nano_loss(model, int(batch[0][0, 0]))

    ours = sparsify("llama-nano", steps=STEPS, update_every=EVERY, **(CASES[case] or {"execution": "masked"}))
    sparsifier = None if CASES[case] is None else ours
    one = OptimizationStep(ours.model, ours.optimizer, loss_of, 0.5, sparsifier)
    memory = None
    if monkeypatch is not None:
        stream = type("Stream", (), {"wait_stream": lambda *_: None})()
        monkeypatch.setattr(step_module.torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(step_module.torch.cuda, "stream", lambda _: nullcontext())
        memory = Memory(one)
        one.graphs, one._stream, one._memory, one._rate = True, stream, memory, torch.zeros(())
        launch = one._run_eager
        monkeypatch.setattr(
            one, "_run_eager", lambda *given: (memory.launched.append(ours.step_count), launch(*given))[1]
        )
        if fault is not None:
            fault(ours, monkeypatch)
    norms = []
    # As a training loop cuts inputs out of a longer row: with strides, and not from the start of its memory.
    rows = [torch.full((2, 4), step)[:, 1:] for step in range(steps)]
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
    # Masked-dense one capture serves all masks; in the sparse state and with warm regrown state each mask has its own.
    updates = [step for step in range(STEPS) if step % EVERY == 0]
    captures = {"masked": 1, "trimmed": 1, "dense": 1, "sparse": len(updates), "warm": len(updates)}
    assert captures.get(case, memory.captures) == memory.captures
    if case == "trimmed":
        assert ours.config.final_step == updates[-1] + 1
    if "switching" in case:
        assert 1 < memory.captures < len(updates) + 1
    # The first of each execution, so that it is compiled, and a first mask update; all others are replays, updates too.
    switched = [step for step in memory.launched if step > 1]
    assert memory.launched == ([0] if case == "dense" else [0, 1]) + switched
    assert len(switched) == ("switching" in case)
    assert memory.released == len(memory.launched)


def out_of_memory(ours, monkeypatch):
    """Of the second update the last gradient finds no room."""
    take, left = DenseGradient.add, [11]

    def fails(self, product):
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError
        take(self, product)

    monkeypatch.setattr(DenseGradient, "add", fails)


def layer_by_layer(ours, monkeypatch):
    """An MLP that does not run by the operator tells nothing."""
    monkeypatch.setattr(sparse_mlp, "can_train", lambda layers: False)


@pytest.mark.parametrize("fault", [out_of_memory, layer_by_layer])
def test_an_update_that_a_replay_does_not_do_for_is_launched(fault, monkeypatch):
    with monkeypatch.context() as patch:
        fault(None, patch) if fault is layer_by_layer else None
        losses, norms, plain, _ = trained("sparse")
    ours_losses, ours_norms, ours, memory = trained("sparse", monkeypatch, fault=fault)
    # The last update fixes the masks, for which no gradient is asked.
    growing = range(EVERY, ours.config.final_step, EVERY)
    assert memory.launched == [0, 1, *(growing[:1] if fault is out_of_memory else growing)]
    assert memory.was_short == (fault is out_of_memory)
    torch.testing.assert_close(torch.tensor(ours_losses), torch.tensor(losses), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(ours_norms), torch.tensor(norms), rtol=1e-4, atol=0)
    assert all(torch.equal(mask, plain.masks[name]) for name, mask in ours.masks.items())


def test_the_gradients_of_all_groups_are_clipped_together():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], lr=0.1)
    one = OptimizationStep(model, optimizer, lambda net, batch: net(batch[0]).square().sum(), 0.5)
    norms: list[float] = []
    one.run((torch.ones(4, 3),), check_norm=norms.append)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()
    assert clipped == pytest.approx(0.5, rel=1e-4)
    assert norms[0] > 0.5


@pytest.mark.parametrize(("layers", "ends"), [(1, [0]), (2, [0, 1]), (16, [4, 8, 12])])
def test_parts_of_the_backward_pass_end_at_parameters_of_their_own(layers, ends):
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers)), nn.Linear(2, 2).requires_grad_(False))
    one = OptimizationStep(model, torch.optim.SGD(model.parameters()), lambda *_: torch.zeros(()), 1.0)
    assert [id(end) for end in one._part_ends()] == [id(model[place].weight) for place in ends]


def test_nothing_is_kept_of_graphs_that_are_gone(monkeypatch):
    *_, ours, memory = trained("sparse", monkeypatch, steps=EVERY + 1)
    assert ours.step_count == EVERY + 1
    assert not memory.one._loss.requires_grad
    assert all(module.saved_activations is None for module in ours.model.modules() if isinstance(module, TrainingMlp))


def test_a_model_can_be_copied_while_a_mask_update_is_awaited(monkeypatch):
    *_, ours, _ = trained("sparse", monkeypatch, steps=EVERY - 1)
    saved = [module.saved_activations for module in ours.model.modules() if isinstance(module, TrainingMlp)]
    assert all(len(passes) == 1 for passes in saved)
    assert not any(tensor.requires_grad for passes in saved for one in passes for tensor in one)
    copied = copy.deepcopy(ours.model)
    torch.testing.assert_close(nano_loss(copied, 3), nano_loss(ours.model, 3))


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

    one = OptimizationStep(ours.model, ours.optimizer, loss_of, 0.5, ours)
    stream = type("Stream", (), {"wait_stream": lambda *_: None})()
    monkeypatch.setattr(step_module.torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(step_module.torch.cuda, "stream", lambda _: nullcontext())
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
