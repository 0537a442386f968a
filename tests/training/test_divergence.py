"""A training that diverges stops with one sentence that names its last good state."""

from __future__ import annotations

import pytest
import torch
from switch_cases import sparsify
from torch import nn

from blast.errors import BlastError
from blast.training.divergence import PATIENCE, WINDOW, DivergenceCheck
from blast.training.loop import train
from blast.training.settings import TrainingSettings


def fed(check: DivergenceCheck, losses: list[float]) -> int:
    """Checks losses one after the other and returns how many it took."""
    for step, loss in enumerate(losses):
        check.check(step, loss)
    return len(losses)


def test_a_loss_that_jumps_and_stays_stops_the_run(tmp_path):
    check = DivergenceCheck(3.0, tmp_path / "state.pt")
    check.state_saved(40)
    losses = [3.0] * WINDOW + [7.5] * PATIENCE
    message = r"7.5 nats at step 59, after 3 before step 50, and the last good state is .*state.pt, before step 40;"
    with pytest.raises(BlastError, match=message):
        fed(check, losses)


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * WINDOW + [7.5] * (PATIENCE - 1) + [3.0] + [7.5] * (PATIENCE - 1),  # it recovers
        [3.0] * WINDOW + [5.5] * 100,  # a mask update may cost that much
        [9.0 - 0.01 * step for step in range(300)],
        [1.0] * (WINDOW - 1) + [8.0] * PATIENCE,  # too early to know what is usual
    ],
)
def test_what_a_healthy_run_does_is_no_spike(losses):
    assert fed(DivergenceCheck(3.0), losses) == len(losses)


def test_the_check_can_be_turned_off_but_not_for_nan():
    check = DivergenceCheck(0.0)
    fed(check, [3.0] * WINDOW + [90.0] * 50)
    with pytest.raises(BlastError, match="the loss is nan at step 7, and no state was saved before it"):
        check.check(7, float("nan"))


def run(tmp_path, steps: int, bad_at: int, **settings) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def loss_of(model, batch):
        # The loss is fine, its gradient is not: the derivative of the root is infinite at zero.
        loss = model(batch[0]).square().mean()
        return loss + (loss - loss.detach()).abs().sqrt() if int(batch[1]) == bad_at else loss

    train(
        model,
        TrainingSettings(steps=steps, batch=1, learning_rate=0.01, checkpoint_seconds=0, **settings),
        batch_at=lambda step: (torch.ones(2, 4), torch.tensor(step)),
        loss_of=loss_of,
        evaluate=lambda model: 0.0,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        state_file=tmp_path / "state.pt",
        say=lambda line: None,
    )


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_lost(tmp_path):
    message = r"the gradient is not finite at step 6 .*the last good state is .*state.pt, before step 6; lower"
    with pytest.raises(BlastError, match=message):
        run(tmp_path, steps=9, bad_at=6)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["step"] == 6
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("bad_at", [4, 5])
def test_a_bad_gradient_at_a_mask_update_names_the_last_good_state_as_any_other(tmp_path, bad_at):
    ours = sparsify("gpt2-nano", execution="masked")  # masks change in every second step
    poisoned = ours.model.get_submodule("transformer.h.0.mlp.c_fc").weight

    def loss_of(model, batch):
        loss = model(input_ids=batch[0], labels=batch[0], use_cache=False).loss
        # The root of zero is finite and its derivative is not.
        return loss + (poisoned.sum() * 0).sqrt() if int(batch[1]) == bad_at else loss

    with pytest.raises(
        BlastError, match=rf"not finite at step {bad_at} .*last good state is .*, before step {bad_at};"
    ):
        train(
            ours.model,
            TrainingSettings(steps=12, batch=1, learning_rate=1e-3, checkpoint_seconds=0),
            batch_at=lambda step: (torch.arange(24)[None], torch.tensor(step)),
            loss_of=loss_of,
            evaluate=lambda model: 0.0,
            optimizer=ours.optimizer,
            sparsifier=ours,
            state_file=tmp_path / "state.pt",
            say=lambda line: None,
        )


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
def test_a_switch_is_true_or_false(key):
    assert getattr(TrainingSettings.from_dict({"steps": 1, "batch": 1, "learning_rate": 1, key: True}), key)
    with pytest.raises(BlastError, match=f"'{key}' is 1; give true or false"):
        TrainingSettings.from_dict({"steps": 1, "batch": 1, "learning_rate": 1, key: 1})
