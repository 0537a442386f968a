"""Where torch is asked for deterministic algorithms: always on a CPU, on a GPU if the setting says so."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from blast.training.settings import TrainingSettings

GIVEN = {"steps": 3, "batch": 4, "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("device", "setting", "asked"),
    [("cpu", True, True), ("cpu", False, True), ("cuda", True, True), ("cuda", False, False)],
)
@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_are_asked_for_by_device_and_setting(device, setting, asked, before):
    settings = TrainingSettings.from_dict(GIVEN | {"deterministic": setting})
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before, warn_only=True)
    try:
        with suppress(ZeroDivisionError), settings.algorithms(torch.device(device)):
            inside = torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError
        assert inside is asked
        assert torch.are_deterministic_algorithms_enabled() is before
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
