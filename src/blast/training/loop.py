"""The training loop: deterministic, and able to resume after it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blast.distributed import is_first_rank
from blast.sparsity.sparsifier import Sparsifier
from blast.training.checkpoint import SaveInterval, TrainingState, state_bytes
from blast.training.divergence import REMEDY, DivergenceCheck, lost_what_it_learned
from blast.training.history import MASK_SNAPSHOTS, History, Stopwatch
from blast.training.parallel import broadcast
from blast.training.settings import TrainingSettings
from blast.training.step import OptimizationStep

CURVE_POINTS = 60

Batch = tuple[Tensor, Tensor]


class TrainingStopped(Exception):  # noqa: N818
    """A training ended before its last step because it was told to; its state is saved."""


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices, not on vectors (biases, norms); fused on a GPU."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_cuda for p in parameters)
    graphs = fused and settings.cuda_graphs
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=fused, capturable=graphs)


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
    remedy: str = REMEDY,
    guessing: float | None = None,
    watch: Callable[[int, dict[str, float]], Any] | None = None,
    stop: Callable[[], object] = lambda: False,
) -> History:
    """Trains a model in place.

    Args:
        model: In training mode afterwards.
        settings: Steps, learning rate and so on.
        batch_at: Inputs and targets of a step. It must be a pure function of the step, so that a resumed run equals
            an undisturbed one bit for bit.
        loss_of: Mean loss of a batch, nats.
        evaluate: Loss on held-out data, for the learning curve.
        optimizer: The optimizer over the model's parameters.
        sparsifier: Prunes while training; None trains dense.
        state_file: File of the training state while the run lasts; None saves none.
        key: Digest of everything that determines the run; a state with another key is not used.
        say: Prints a line of progress, every few seconds.
        remedy: What the error of a run that diverges tells the user to do.
        guessing: Loss of guessing among all tokens or classes, nats, for the divergence check; None if unknown.
        watch: Is told the number of steps that are done and what was measured at the last one: `loss`, and what the
            curves got. Called at each point of a curve and every few seconds.
        stop: Asked after each step but the last: whether to save the state and to end.

    Returns:
        The history of the run.

    Raises:
        BlastError: if the loss or the gradient is not finite, if the loss rises and stays high (the message names the
            last good state), or if the state file is damaged.
        TrainingStopped: if `stop` said so.
    """
    history = History()
    state = TrainingState(state_file, key) if state_file else None
    first = state.restore(model, optimizer, sparsifier, history) if state else 0
    started_at = history.curves["train_loss"]["value"][0] if first and "train_loss" in history.curves else None
    divergence = DivergenceCheck(settings.spike, state_file, remedy, guessing, started_at, say)
    if state and state.discarded:
        say(state.discarded)
    if first:
        divergence.state_saved(first)
        say(f"resuming at step {first + 1} of {settings.steps}")
    every = max(1, settings.steps // CURVE_POINTS)
    snapshots = {round(i * (settings.steps - 1) / (MASK_SNAPSHOTS - 1)) for i in range(MASK_SNAPSHOTS)}
    optimization_step = OptimizationStep(model, optimizer, loss_of, settings.clip, sparsifier, settings.cuda_graphs)
    stopwatch = Stopwatch(history)
    interval = SaveInterval(settings.checkpoint_seconds, state_bytes(model))
    printed = time.monotonic()
    model.train()
    for step in range(first, settings.steps):
        with stopwatch.of_step(sparsifier is not None and sparsifier.update_due):
            optimization_step.set_rate(settings.rate(step))
            checks = partial(divergence.check, step), partial(divergence.check_gradient, step)
            value = optimization_step.run(batch_at(step), *checks)

        last = step == settings.steps - 1
        if step % every == 0 or last:
            history.add("train_loss", step, value)
            if sparsifier is not None:
                history.add("sparsity_target", step, sparsifier.sparsity_target)
                history.add("sparsity_achieved", step, sparsifier.sparsity_achieved)
                history.add("sparse_execution", step, float(sparsifier.execution == "sparse"))
        if sparsifier is not None and step in snapshots:
            history.masks[step] = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        if (step + 1) % settings.evaluate_every == 0 or last:
            model.eval()
            history.add("validation_loss", step, evaluate(model))
            model.train()
            stopwatch.note(step)
        stopping = not last and is_first_rank() and bool(stop())
        wanted = is_first_rank() and divergence.healthy and (interval.due or stopping)
        if state and not last and broadcast(wanted, model):
            with interval.writing():
                state.save(step + 1, model, optimizer, sparsifier, history)
            divergence.state_saved(step + 1)
        if stopping:
            kept = "saved" if wanted else "its last state is kept"
            say(f"told to stop after step {step + 1} of {settings.steps}: {kept}")
            raise TrainingStopped
        now = time.monotonic()
        told = now - printed >= 5 or last
        if watch is not None and ((noted := history.at(step)) or told):
            watch(step + 1, {"loss": value, **noted})
        if told:
            say(f"step {step + 1} of {settings.steps}, loss {value:.4f}")
            printed = now
    curve = history.curves.get("validation_loss", {"step": [], "value": []})
    if lost := lost_what_it_learned(curve["step"], curve["value"], guessing):
        say(f"BAD: {lost}; {remedy}.")
    return history
