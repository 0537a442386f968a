"""The GPU that a suite of training runs on, or the sentence that says there is none."""

from __future__ import annotations

import torch

from blast.errors import BlastError


def gpu_for(suite: str) -> torch.device:
    """The current GPU.

    Args:
        suite: Which suite asks, for the sentence.

    Raises:
        BlastError: if there is none.
    """
    if not torch.cuda.is_available():
        raise BlastError(
            f"the suite '{suite}' times training on a GPU and this machine has no CUDA GPU; "
            "run the point on one with `python -m blast job` and take its records in with `blast import`."
        )
    return torch.device("cuda", torch.cuda.current_device())
