"""The processes that `torchrun` started for one training: their process group, and the part of a batch each trains on.

`blast.average_gradients` averages the gradients. So the result is that of one process, except for rounding.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from blast.distributed import world_size
from blast.errors import BlastError

# The other processes wait while the first one evaluates and writes. torchrun, not this limit, detects a dead process.
TIMEOUT = timedelta(hours=2)


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process, counted from 0, and the number of processes, as `torchrun` set them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def init_process_group() -> None:
    """Joins the other processes, if there are any. Each gets a GPU of its own if the machine has GPUs.

    Raises:
        BlastError: if there are fewer GPUs than processes, but at least one.
    """
    _, processes = rank_and_world_size()
    if processes == 1:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if gpus:
        if gpus < here:
            raise BlastError(
                f"the training needs {here} GPUs, one for each process, but {gpus} are available; "
                "lower 'processes' under 'training' in the config, or use a machine with enough GPUs."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpus else "gloo", timeout=TIMEOUT)


def destroy_process_group() -> bool:
    """Ends the communication with the other processes; the first process does the rest of the work alone.

    Returns:
        Whether this is the first process.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return rank_and_world_size()[0] == 0


def local_batch(batch: Tensor) -> Tensor:
    """The part of a batch that this process trains on: equal parts in the order of the processes.

    Args:
        batch: `[n, …]` for all processes; `n` must be a multiple of their number.
    """
    return batch if world_size() == 1 else batch.chunk(world_size())[dist.get_rank()]
