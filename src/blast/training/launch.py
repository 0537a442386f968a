"""The processes that `torchrun` started for one training: joining them, and the share that each has of a batch.

Gradients are averaged by `blast.average_gradients`, so that the result is that of one process but for rounding.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from blast.distributed import world_size
from blast.errors import BlastError

# The others wait for the first one while it evaluates and writes. One that dies is noticed by torchrun, not by this.
PATIENCE = timedelta(hours=2)


def launched() -> tuple[int, int]:
    """Which process this is, counted from 0, and of how many."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Joins the other processes, if there are any, with a GPU of its own for each where there are GPUs.

    Raises:
        BlastError: if there are GPUs, but not enough.
    """
    _, processes = launched()
    if processes == 1:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if gpus:
        if gpus < here:
            raise BlastError(
                f"the training is to have {here} processes, one a GPU, and there are {gpus} GPUs for it; "
                "lower 'processes' under 'training' in the config, or run it where there are as many."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)


def leave() -> bool:
    """Parts from the other processes when the training is done; what is left is for the first one alone.

    Returns:
        Whether this is the first.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return launched()[0] == 0


def own_share(batch: Tensor) -> Tensor:
    """The part of a batch that this process trains on: equal parts in the order of the processes.

    Args:
        batch: `[n, …]` of all processes; their number divides `n`.
    """
    return batch if world_size() == 1 else batch.chunk(world_size())[dist.get_rank()]
