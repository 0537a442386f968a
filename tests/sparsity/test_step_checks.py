"""How often a sparsifier looks through the state of the optimizer, which takes time in each step that does."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from blast.sparsity import step_checks
from blast.sparsity.step_checks import StepChecks


def test_the_state_is_checked_in_the_first_steps_after_a_load_and_at_mask_updates(monkeypatch):
    checked = []
    monkeypatch.setattr(step_checks, "check_state", lambda *_, **__: checked.append(step))
    optimizers = SimpleNamespace(check_loaded=lambda _: None)
    clock, step = SimpleNamespace(update_due=False), "made"
    checks = StepChecks(nn.Linear(2, 2), [], optimizers, clock)
    for step in range(12):
        if step == 6:
            checks.after_load()
        clock.update_due = step == 4
        checks.before_step(sparse=False)
    assert checked == ["made", 0, 1, 4, 6, 7]
