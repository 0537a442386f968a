"""A training that diverges stops with one sentence that names its last good state."""

from __future__ import annotations

import pytest
import torch
from switch_cases import sparsify
from torch import nn

from blast.errors import BlastError
from blast.training.divergence import PATIENCE, TOLD, WINDOW, DivergenceCheck, lost_what_it_learned
from blast.training.loop import train
from blast.training.settings import TrainingSettings


def fed(check: DivergenceCheck, losses: list[float]) -> int:
    """Checks losses one after the other and returns how many it took."""
    for step, loss in enumerate(losses):
        check.check(step, loss)
    return len(losses)


@pytest.mark.fault(
    fault="The loss jumps and stays high.",
    topic="What the verdict says",
    happens="The training stops and the point fails.",
    reads=(
        "the loss is … nats at step …, after … before step …, and the last good state is …, "
        "before step …; lower 'learning_rate' or 'clip' under 'training' in the config and run "
        "again."
    ),
    lost="the steps after that state",
)
def test_a_loss_that_jumps_and_stays_stops_the_run(tmp_path, reads):
    check = DivergenceCheck(3.0, tmp_path / "state.pt")
    check.state_saved(40)
    losses = [3.0] * WINDOW + [7.5] * PATIENCE
    message = r"7.5 nats at step 59, after 3 before step 50, and the last good state is .*state.pt, before step 40;"
    with pytest.raises(BlastError, match=message) as raised:
        fed(check, losses)
    reads(str(raised.value))


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * WINDOW + [7.5] * (PATIENCE - 1) + [3.0] + [7.5] * (PATIENCE - 1),  # it recovers
        [3.0] * WINDOW + [5.5] * 100,  # a mask update may cost that much
        [9.0 - 0.01 * step for step in range(300)],
        [10.9] * 5 + [13.5] * 30 + [9.0] * 20,  # not so far above the first loss
    ],
)
def test_what_a_healthy_run_does_is_no_spike(losses):
    assert fed(DivergenceCheck(3.0), losses) == len(losses)


def test_the_check_can_be_turned_off_but_not_for_nan():
    check = DivergenceCheck(0.0)
    fed(check, [3.0] * WINDOW + [90.0] * 50)
    with pytest.raises(BlastError, match="the loss is nan at step 7, and no state was saved before it"):
        check.check(7, float("nan"))


@pytest.mark.fault(
    fault="The loss jumps and stays high in the first 50 steps.",
    topic="What the verdict says",
    happens="The training stops and the point fails.",
    reads=(
        "the loss is … nats at step …, after … before step … and above the … of guessing, and no "
        "state was saved before it; lower 'learning_rate' or 'clip' under 'training' in the "
        "config and run again."
    ),
    lost="these steps",
)
@pytest.mark.parametrize("steps_before", [1, 12])
def test_a_run_that_is_too_short_for_a_usual_loss_is_stopped_far_above_guessing(steps_before, reads):
    """As in a grid of 30 steps whose loss went to 16 to 20 nats, where guessing has 10.8."""
    losses = [10.9] * steps_before + [16.0, 20.0] * 10
    message = rf"20 nats at step {steps_before + 9}, after 10.9 before step {steps_before} and above the 10.8 of guess"
    with pytest.raises(BlastError, match=message) as raised:
        fed(DivergenceCheck(3.0, guessing=10.8), losses)
    reads(str(raised.value))


def test_a_pruned_start_that_is_worse_than_guessing_may_recover():
    losses = [15.0] * 20 + [17.5] * 20 + [9.0] * 60
    assert fed(DivergenceCheck(3.0, guessing=10.8), losses) == len(losses)


def test_a_resumed_run_is_judged_by_its_first_loss_as_the_whole_run_is():
    losses = [12.0] * 20
    assert fed(DivergenceCheck(3.0, started_at=10.0), losses) == len(losses)
    with pytest.raises(BlastError, match="12 nats at step 10, after 2 before step 1"):
        fed(DivergenceCheck(3.0), [2.0, *losses])


@pytest.mark.fault(
    fault="The loss jumps and comes back.",
    topic="What the verdict says",
    happens="The run goes on. The log tells it.",
    reads="SPIKE: the loss is … nats at step …, after …; 10 such steps in a row stop the run",
    lost="nothing",
)
def test_spikes_and_their_ends_are_told_but_not_for_ever(reads):
    said = []
    check = DivergenceCheck(3.0, say=said.append)
    fed(check, [3.0] * WINDOW + [7.5, 7.6, 3.1] + [7.5, 3.0] * 20)
    assert said[0] == "SPIKE: the loss is 7.5 nats at step 50, after 3; 10 such steps in a row stop the run"
    reads(said[0])
    assert said[1] == "the loss is 3.1 nats at step 52 again, after 2 steps above 6"
    assert sum(line.startswith("SPIKE") for line in said) == TOLD
    assert [line for line in said if line.startswith("SPIKE")][-1].endswith("; later spikes are not told")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([9.0, 5.0, 3.0], None),
        ([9.0, 3.0, 5.0], None),  # mask updates cost something
        ([9.0, 3.0, 7.0], "rose from 3.00 nats at step 20 to 7.00 at step 30 and did not come back"),
        ([9.0, 7.0, 16.0], "16.00 nats at step 30, after 7.00 at step 20, no better than the 10.80 of guessing"),
        ([10.8, 10.8, 10.8], "10.80 nats at step 30, no better than the 10.80 of guessing"),
        ([9.0, 7.0, float("inf")], "is inf at step 30"),
        ([9.0, float("nan"), float("nan")], None),  # other processes evaluate
        ([], None),
    ],
)
def test_the_curve_of_a_training_says_what_it_lost(losses, said):
    found = lost_what_it_learned([10, 20, 30][: len(losses)], losses, 10.8)
    assert (found is None) if said is None else said in found
    if losses and found and "inf" not in found:
        assert lost_what_it_learned([10, 20, 30], losses, None) is None


def test_the_log_of_a_training_says_that_it_learned_nothing():
    said = []
    model = nn.Linear(2, 2)
    train(
        model,
        TrainingSettings(steps=3, batch=1, learning_rate=1e-3),
        batch_at=lambda step: (torch.ones(1, 2), torch.zeros(1)),
        loss_of=lambda model, batch: model(batch[0]).square().mean() + 16,
        evaluate=lambda model: 16.4,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        say=said.append,
        guessing=10.82,
    )
    assert said[-1] == (
        "BAD: the loss on held-out data is 16.40 nats at step 2, no better than the 10.82 of guessing; "
        "lower 'learning_rate' or 'clip' under 'training' in the config."
    )


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


@pytest.mark.fault(
    fault="A gradient is not finite.",
    topic="What the verdict says",
    happens="The training stops before the weights are changed. The point fails.",
    reads=(
        "the gradient is not finite at step … (its norm is …), and the last good state is …, "
        "before step …; lower 'learning_rate' or 'clip' under 'training' in the config and run "
        "again."
    ),
    lost="nothing before that step",
)
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_lost(tmp_path, reads):
    message = r"the gradient is not finite at step 6 .*the last good state is .*state.pt, before step 6; lower"
    with pytest.raises(BlastError, match=message) as raised:
        run(tmp_path, steps=9, bad_at=6)
    reads(str(raised.value))
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
