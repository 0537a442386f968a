"""The training loop: plain, deterministic, and able to go on from where it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blast.sparsity.ranks import average_gradients, is_first_rank, mean_over_ranks_
from blast.sparsity.sparsifier import Sparsifier
from blast.training.guard import LossGuard
from blast.training.resume import TrainingState
from blast.training.settings import TrainingSettings

CURVE_POINTS = 60
MASK_PICTURES = 8

Batch = tuple[Tensor, Tensor]


@dataclass
class History:
    """What a run looked like on the way; part of the training state, so that a resumed run has all of it.

    Attributes:
        curves: By name, the steps and values of each learning curve.
        masks: By step, the mask of every pruned matrix, at most `MASK_PICTURES` times.
    """

    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    masks: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, name: str, step: int, value: float) -> None:
        """Adds a point to a curve."""
        curve = self.curves.setdefault(name, {"step": [], "value": []})
        curve["step"].append(step)
        curve["value"].append(value)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves vectors (biases, norms) alone; on a GPU in one kernel for all of them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=fused)


def train(
    model: nn.Module,
    settings: TrainingSettings,
    *,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[nn.Module, Batch], Tensor],
    evaluate: Callable[[nn.Module], float],
    optimizer: torch.optim.Optimizer,
    sparsifier: Sparsifier | None = None,
    state_file: Path | None = None,
    key: str = "",
    say: Callable[[str], Any] = print,
) -> History:
    """Trains a model in place.

    Args:
        model: In training mode afterwards.
        settings: Steps, learning rate and so on.
        batch_at: Inputs and targets of a step, a pure function of the step: this is what makes a resumed run equal
            an undisturbed one bit for bit.
        loss_of: Mean loss of a batch, nats.
        evaluate: Loss on held-out data, for the curve.
        optimizer: Holds the model's parameters.
        sparsifier: Prunes while training; None trains dense.
        state_file: Where the training state is kept while the run goes on; None keeps none.
        key: Digest of everything that decides the run; a state with another key is not used.
        say: Takes one line of progress now and then.

    Raises:
        BlastError: if the loss or the gradient is not finite, or the loss jumps up and stays there (the message names
            the last good state); if the state file is damaged.
    """
    history = History()
    state = TrainingState(state_file, key) if state_file else None
    first = state.restore(model, optimizer, sparsifier, history) if state else 0
    guard = LossGuard(settings.spike, state_file)
    if state and state.discarded:
        say(state.discarded)
    if first:
        guard.saved(first)
        say(f"going on with step {first + 1} of {settings.steps}")
    every = max(1, settings.steps // CURVE_POINTS)
    pictures = {round(i * (settings.steps - 1) / (MASK_PICTURES - 1)) for i in range(MASK_PICTURES)}
    saved = spoken = time.monotonic()
    model.train()
    for step in range(first, settings.steps):
        rate = settings.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, batch_at(step))
        value = mean_over_ranks_(loss.detach().clone()).item()
        guard.check(step, value)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(model)
        if sparsifier is not None:
            sparsifier.step()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        guard.check_gradient(step, norm.item())
        optimizer.step()

        last = step == settings.steps - 1
        if step % every == 0 or last:
            history.add("train_loss", step, value)
            if sparsifier is not None:
                history.add("sparsity_target", step, sparsifier.sparsity_target)
                history.add("sparsity_achieved", step, sparsifier.sparsity_achieved)
        if sparsifier is not None and step in pictures:
            history.masks[step] = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        if (step + 1) % settings.evaluate_every == 0 or last:
            model.eval()
            history.add("validation_loss", step, evaluate(model))
            model.train()
        now = time.monotonic()
        if state and is_first_rank() and not last and guard.calm and now - saved >= settings.checkpoint_seconds:
            state.save(step + 1, model, optimizer, sparsifier, history)
            guard.saved(step + 1)
            saved = now
        if now - spoken >= 5 or last:
            say(f"step {step + 1} of {settings.steps}, loss {value:.4f}")
            spoken = now
    return history
