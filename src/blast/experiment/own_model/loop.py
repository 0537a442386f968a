"""Trains the model while it is pruned, says how far it is, and keeps its state for a stopped run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from torch import Tensor, nn

from blast.experiment.own_model import recipe
from blast.experiment.own_model.step_time import as_time
from blast.sparsity.sparsifier import Sparsifier
from blast.training.language_loss import head_of
from blast.training.loop import make_optimizer, train

if TYPE_CHECKING:
    from blast.experiment.own_model.plan import Plan
    from blast.experiment.own_model.unfinished import Unfinished
    from blast.experiment.own_model.workplace import Workplace


def prune_while_training(work: Workplace, plan: Plan, unfinished: Unfinished) -> tuple[dict[str, Tensor], float]:
    """Trains and prunes the model in place.

    Args:
        work: The model and the text.
        plan: What to do.
        unfinished: Where the state of the training is kept.

    Returns:
        The masks by matrix, and the seconds of all steps.
    """
    options, loss = work.options, work.loss()
    settings = recipe.training_settings(
        steps=plan.steps, batch=options.batch, length=options.length, learning_rate=options.learning_rate,
        dtype=plan.dtype, on_gpu=work.device.type == "cuda",
    )  # fmt: skip
    config = recipe.sparsify_config(
        sparsity=options.sparsity, block=work.block, steps=plan.steps, start=plan.start, seed=options.seed,
        names=[target.name for target in work.matrices_without(plan.dense_layers)],
    )  # fmt: skip
    optimizer = make_optimizer(work.model, settings)
    sparsifier = Sparsifier(work.model, optimizer, config)
    first: list[tuple[int, float]] = []

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        tokens = work.batch(step)
        return tokens[:, :-1], tokens[:, 1:]

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with settings.autocast(work.device):
            return loss(model, *batch)

    def say(line: str) -> None:
        done, now = sparsifier.step_count, time.monotonic()
        first.append((done, now))
        pace = (now - first[0][1]) / (done - first[0][0]) if done > first[0][0] else plan.step_seconds
        if line.startswith("step "):
            sparsity = 100 * sparsifier.sparsity_achieved
            line = f"{line}, {sparsity:.0f} % sparse, {as_time((plan.steps - done) * pace)} left"
        work.say(line)

    try:
        with settings.algorithms(work.device):
            history = train(
                work.model,
                settings,
                batch_at=batch_at,
                loss_of=loss_of,
                # The held-out loss is measured once, of the finished model.
                evaluate=lambda model: math.nan,
                optimizer=optimizer,
                sparsifier=sparsifier,
                state_file=unfinished.state_file,
                key=unfinished.key,
                say=say,
                remedy="lower --learning-rate",
                guessing=math.log(len(head_of(work.model)[0])),
            )
    except KeyboardInterrupt:
        if unfinished.state_file.is_file():
            work.say(f"the state of the training is in {unfinished.folder}")
        raise
    return sparsifier.masks, history.spent["value"]
