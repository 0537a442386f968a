from __future__ import annotations

import warnings

import pytest
import torch
from sparsity_models import assert_dead_blocks_are_zero, tiny_gpt2
from switch_cases import nano_loss, sparsify, steps

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import one_shot_masks
from blast.sparsity.sparsifier import Sparsifier

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dead_blocks_stay_zero_on_a_gpu_with_a_fused_optimizer(dtype):
    model = tiny_gpt2().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    config = SparsifyConfig(sparsity=0.75, block=16, steps=8, update_every=2)
    sparsifier = Sparsifier(model, optimizer, config)
    # Moved after the sparsifier was made: its masks follow.
    model.cuda()
    optimizer.param_groups[0]["fused"] = True
    for step in range(8):
        optimizer.zero_grad()
        tokens = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(step)).cuda()
        model(input_ids=tokens, labels=tokens).loss.backward()
        sparsifier.step()
        optimizer.step()
        assert_dead_blocks_are_zero(sparsifier)
    assert sparsifier.sparsity_achieved == 0.75
    assert all(mask.is_cuda for mask in sparsifier.masks.values())


def test_random_masks_are_the_same_on_a_gpu_and_a_cpu():
    config = SparsifyConfig(sparsity=0.75, block=16, steps=8, keep_score="random", ranking="model")
    cpu, gpu = one_shot_masks(tiny_gpt2(), config), one_shot_masks(tiny_gpt2().cuda(), config)
    assert all(torch.equal(mask, gpu[name].cpu()) for name, mask in cpu.items())


@pytest.mark.parametrize(("execution", "waits"), [("masked", 1), ("sparse", 2)])
def test_the_gpu_is_waited_for_once_or_twice_in_a_mask_update_and_in_no_other_step(execution, waits):
    sparsifier = sparsify("gpt2-nano", device="cuda", execution=execution, initial_sparsity=0.5, grow="swap")
    steps(sparsifier, 4)
    seen = []
    for _ in range(2):
        sparsifier.optimizer.zero_grad()
        nano_loss(sparsifier.model, sparsifier.step_count).backward()
        due = sparsifier.update_due
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sparsifier.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        seen.append((due, sum("called a synchronizing" in str(warning.message) for warning in caught)))
        sparsifier.optimizer.step()
    assert seen == [(True, waits), (False, 0)]


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"fused": True, "capturable": True}])
def test_warm_regrown_state_never_waits_for_the_gpu_in_a_step_of_the_optimizer(execution, options):
    """Not when blocks grew either: only the mask update itself waits, in `sparsifier.step()`."""
    settings = {"execution": execution, "regrown_state": "warm", "regrown_warmup": 3, "update_every": 4}
    sparsifier = sparsify("gpt2-nano", device="cuda", initial_sparsity=0.5, grow="swap", **settings)
    for group in sparsifier.optimizer.param_groups:
        group.update(options)
    waits = []
    for _ in range(9):
        sparsifier.optimizer.zero_grad()
        nano_loss(sparsifier.model, sparsifier.step_count).backward()
        sparsifier.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sparsifier.optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("called a synchronizing" in str(warning.message) for warning in caught))
    assert waits == [0] * 9
