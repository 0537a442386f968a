"""Pruning in a loop of accelerate: wrapped optimizers, accumulation, `save_state` and `load_state`."""

from __future__ import annotations

import accelerate
import pytest
import torch
from torch import nn

import blast
from blast.errors import BlastError
from blast.integrations import register_sparsifier

STEPS = 10
SETTINGS = {"sparsity": 0.5, "block": 8, "steps": STEPS, "update_every": 2, "initial_sparsity": 0.25}
MICRO = 2


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)))


def batch(number: int) -> torch.Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(number))


class Run:
    def __init__(self, **settings) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
        model = build()
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        self.sparsifier = blast.Sparsifier(self.model, self.optimizer, blast.SparsifyConfig(**{**SETTINGS, **settings}))

    def train(self, first: int = 0, last: int = STEPS) -> None:
        for number in range(first * MICRO, last * MICRO):
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(batch(number)).square().mean())
                # Between micro-batches this does nothing, as the two below.
                self.sparsifier.step()
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.optimizer.zero_grad()


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_it_prunes_as_a_loop_without_accelerate(execution):
    run = Run(execution=execution)
    run.train()
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(**SETTINGS, execution=execution))
    for step in range(STEPS):
        for part in range(MICRO):
            (model(batch(step * MICRO + part)).square().mean() / MICRO).backward()
        sparsifier.step()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert run.sparsifier.step_count == STEPS
    assert run.sparsifier.execution == execution
    assert all(torch.equal(mask, run.sparsifier.masks[name]) for name, mask in sparsifier.masks.items())
    ours = run.accelerator.unwrap_model(run.model).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("safe", [True, False])
def test_save_state_and_load_state_resume_exactly(safe, execution, tmp_path):
    whole = Run(execution=execution)
    register_sparsifier(whole.accelerator, whole.sparsifier)
    whole.train(0, 5)
    whole.accelerator.save_state(str(tmp_path), safe_serialization=safe)
    whole.train(5, STEPS)

    rest = Run(execution=execution)
    register_sparsifier(rest.accelerator, rest.sparsifier)
    rest.accelerator.load_state(str(tmp_path))
    assert rest.sparsifier.step_count == 5
    assert rest.sparsifier.execution == execution
    rest.train(5, STEPS)
    assert all(torch.equal(mask, rest.sparsifier.masks[name]) for name, mask in whole.sparsifier.masks.items())
    ours = rest.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in whole.model.state_dict().items())


def test_a_folder_without_a_sparsifier_is_refused(tmp_path):
    run = Run()
    run.accelerator.save_state(str(tmp_path))
    register_sparsifier(run.accelerator, run.sparsifier)
    with pytest.raises(BlastError, match=r"holds no sparsifier.bin, so it was saved without a sparsifier"):
        run.accelerator.load_state(str(tmp_path))


def test_the_way_of_accelerate_alone_suits_masked_training(tmp_path):
    whole = Run()
    whole.accelerator.register_for_checkpointing(whole.sparsifier)
    whole.train(0, 5)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(5, STEPS)
    rest = Run()
    rest.accelerator.register_for_checkpointing(rest.sparsifier)
    rest.accelerator.load_state(str(tmp_path))
    rest.train(5, STEPS)
    ours = rest.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in whole.model.state_dict().items())
