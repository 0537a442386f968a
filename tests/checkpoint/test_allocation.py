"""What is said where the memory of a device is too small for the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from blast.checkpoint import allocation


def test_a_gpu_that_is_too_small_is_told_by_what_it_has_and_what_is_needed(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_500_000_000, 80_000_000_000))
    said = allocation._too_small(Path("model"), torch.device("cuda:1"), 14_000_000_000)
    assert said == (
        "the weights in model need 14.00 GB on 'cuda:1', which has 3.50 of its 80.00 GB free; free memory there, take "
        "a GPU with at least 15.40 GB free, or load them onto the CPU."
    )
