"""Counts the torch operations of a sparsifier step; on a GPU each of them costs a launch."""

from __future__ import annotations

import collections

import pytest
import torch
from sparsity_models import loss_of, tiny_gpt2, tiny_llama, train_step
from torch.utils._python_dispatch import TorchDispatchMode

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

# Each of these waits for a GPU, directly or because the size of its result is known on the GPU only.
WAITS = ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select", "repeat_interleave")
EVERY = 4


class Counted(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def waits(self) -> dict[str, int]:
        return {name: n for name, n in self.counts.items() if any(wait in name for wait in WAITS)}


def before_step(step: int, execution: str, model=tiny_gpt2, layers: int = 2, **settings) -> Sparsifier:
    """A run with the gradients of a step that has not been made yet; masks change in every fourth."""
    model = model(layers)
    config = {"sparsity": 0.5, "block": 16, "steps": 100, "schedule": "constant", "grow": "swap", **settings}
    sparsifier = Sparsifier(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        SparsifyConfig(**config, update_every=EVERY, execution=execution),
    )
    while sparsifier.step_count < step:
        train_step(sparsifier)
    sparsifier.optimizer.zero_grad()
    loss_of(model, step).backward()
    return sparsifier


def count(function) -> Counted:
    with Counted() as counted:
        function()
    return counted


@pytest.mark.parametrize(("execution", "each"), [("masked", 27), ("sparse", 34)])
def test_an_update_takes_few_operations_a_matrix_and_waits_for_none(execution, each):
    totals = []
    for layers in (2, 6):
        sparsifier = before_step(EVERY, execution, layers=layers)
        before = sparsifier.masks
        counted = count(sparsifier.step)
        assert not counted.waits
        assert all(not torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())
        totals.append(counted.counts.total())
    assert totals[1] - totals[0] <= each * 8
    assert totals[0] <= each * 4 + 30


def test_competing_and_tied_masks_take_no_more():
    for settings in ({"ranking": "model"}, {"ranking": "layer", "tie_gate_up": True}):
        for execution in ("masked", "sparse"):
            sparsifier = before_step(EVERY, execution, tiny_llama, layers=4, **settings)
            counted = count(sparsifier.step)
            assert not counted.waits
            assert counted.counts.total() <= 34 * 12 + 60


def test_between_updates_the_sparse_state_asks_nothing_and_the_masked_one_two_operations_a_matrix():
    sparse = before_step(EVERY + 1, "sparse")
    assert not count(sparse.step).counts
    masked = before_step(EVERY + 1, "masked")
    assert count(masked.step).counts == {"aten.as_strided.default": 4, "aten.masked_fill_.Scalar": 4}


def test_the_number_of_operations_does_not_grow_with_the_number_of_blocks():
    few, many = (count(before_step(EVERY, "sparse", block=block).step).counts.total() for block in (32, 8))
    assert many <= few + 8


def test_an_update_is_announced_and_other_steps_can_be_skipped():
    sparsifier = before_step(0, "masked", hold=0.5)
    due = []
    for step in range(60):
        due.append(sparsifier.update_due)
        if due[-1]:
            with pytest.raises(BlastError, match=f"update is due at step {step}; call step\\(\\) instead"):
                sparsifier.cuda_graphs.count_replayed_step()
            train_step(sparsifier)
        else:
            assert not count(sparsifier.cuda_graphs.count_replayed_step).counts
        assert sparsifier.step_count == step + 1
    # The last one trims to the exact budget.
    assert [step for step, is_due in enumerate(due) if is_due] == [*range(0, 50, EVERY), 50]
    assert sparsifier.finished


def test_masks_are_copies_that_stay_as_they_were():
    sparsifier = before_step(EVERY, "masked")
    before = sparsifier.masks
    kept = {name: mask.clone() for name, mask in before.items()}
    assert all(mask is before[name] for name, mask in sparsifier.masks.items())
    sparsifier.step()
    assert all(torch.equal(mask, kept[name]) for name, mask in before.items())
    after = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for mask in sparsifier.masks.values():
        mask.zero_()
    saved = sparsifier.state_dict()["masks"]
    assert all(torch.equal(mask, saved[name]) for name, mask in after.items())
