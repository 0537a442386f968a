"""Growth that decays, and a start without pruning."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import blast
from blast.errors import BlastError
from blast.sparsity.clock import StepClock
from blast.sparsity.prune_and_grow import prune_and_grow
from blast.sparsity.schedule import grow_share, target_sparsity


def config(**settings):
    return blast.SparsifyConfig(
        **{"sparsity": 0.8, "block": 8, "steps": 100, "hold": 0.25, "update_every": 10, **settings}
    )


def test_growth_falls_to_nothing_until_the_mask_is_fixed():
    shares = {
        decay: [grow_share(config(grow_decay=decay), step) for step in range(100)] for decay in ("linear", "cosine")
    }
    for share in shares.values():
        assert share[0] == 1
        assert share[75:] == pytest.approx([0] * 25)
        assert all(before >= after for before, after in itertools.pairwise(share))
    assert shares["linear"][30] == pytest.approx(1 - 30 / 75)
    assert shares["cosine"][30] > shares["linear"][30]
    assert [grow_share(config(grow_share=0.4), step) for step in (0, 50, 99)] == [0.4] * 3


def test_union_grows_within_its_share_of_the_budget():
    live = [torch.tensor([[True, True, True, True, False, False, False, False]])]
    keep, grow = [torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0]])], [torch.tensor([[0.0, 0, 0, 0, 4, 3, 2, 1]])]
    grown = {share: prune_and_grow(live, keep, grow, 4, "union", grow_share=share)[0] for share in (1.0, 0.5, 0.2, 0.0)}
    assert grown[1.0].tolist() == [[True] * 8]
    assert grown[0.5].tolist() == [[True] * 6 + [False] * 2]
    assert grown[0.2].tolist() == grown[0.0].tolist() == live[0].tolist()


@pytest.mark.parametrize("schedule", ["cubic", "linear", "constant"])
def test_a_dense_start_shifts_the_schedule(schedule):
    shifted, plain = config(schedule=schedule, dense_start=0.2), config(schedule=schedule, steps=80, hold=25 / 80)
    targets = [target_sparsity(shifted, step) for step in range(100)]
    assert targets[:20] == [0.0] * 20
    assert targets[20:] == pytest.approx([target_sparsity(plain, step) for step in range(80)])


def test_masks_are_not_updated_before_the_schedule_begins():
    clock, due = StepClock(config(dense_start=0.25)), []
    for step in range(75):
        clock.step_count = step
        due += [step] if clock.update_due else []
    assert due == [25, 35, 45, 55, 65]


def test_training_with_a_dense_start_stays_dense_and_then_reaches_its_sparsity():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = blast.Sparsifier(
        model, optimizer, config(steps=40, dense_start=0.5, schedule="constant", update_every=5)
    )
    for step in range(40):
        model(torch.randn(8, 16)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
        if step < 20:
            assert sparsifier.sparsity_achieved == 0
    assert sparsifier.finished
    assert sparsifier.sparsity_achieved == pytest.approx(0.8, abs=1 / 32)


def test_a_dense_start_that_exceeds_the_run_is_refused():
    with pytest.raises(BlastError, match=r"dense_start 0\.8 and hold 0\.25 together exceed the run; lower one"):
        config(dense_start=0.8)
    with pytest.raises(BlastError, match="set one of them to 0"):
        config(dense_start=0.1, initial_sparsity=0.5)


def test_configs_of_before_keep_their_plain_form_and_digest():
    new = {"dense_start", "grow_share", "grow_decay", "lr_density_power", "regrown_state", "regrown_warmup"}
    assert not new & config().to_dict().keys()
    changed = config(grow_decay="linear")
    assert new & changed.to_dict().keys() == {"grow_decay"}
    assert blast.SparsifyConfig.from_dict(changed.to_dict()) == changed
    assert changed.digest() != config().digest()
