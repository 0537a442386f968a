"""Gradient scalers on a GPU: mask updates wait where the scaler skips a step."""

from __future__ import annotations

import pytest
import torch
from switch_cases import nano_loss, sparsify

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_an_update_waits_while_a_gradient_scaler_skips_steps(unscale, fused, execution):
    ours = sparsify("llama-nano", device="cuda", execution=execution, steps=60)
    for group in ours.optimizer.param_groups:
        group["fused"] = fused
    ours.optimizer._step_supports_amp_scaling = fused
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**36)
    skipped = 0
    for step in range(60):
        with torch.autocast("cuda", torch.float16):
            loss = nano_loss(ours.model, step)
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(ours.optimizer)
        ours.step()
        scaler.step(ours.optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        ours.optimizer.zero_grad()
    assert 0 < skipped < 50
    assert ours.finished
    assert ours.execution == execution
    assert all(parameter.isfinite().all() for parameter in ours.model.parameters())
