"""The GPU of the suites that need one."""

from __future__ import annotations

import torch

from blast.errors import BlastError


def gpu_for(suite: str) -> torch.device:
    """The current GPU.

    Args:
        suite: Name of the suite, for the error message.

    Raises:
        BlastError: if there is no GPU.
    """
    if not torch.cuda.is_available():
        raise BlastError(
            f"the suite '{suite}' needs a GPU and this machine has no CUDA GPU; "
            "run the point on one with `python -m blast job` and import its records with `blast import`."
        )
    return torch.device("cuda", torch.cuda.current_device())
