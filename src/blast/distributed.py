"""Several processes that train one model: masks are chosen from scores that all of them see alike."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blast.block_sparse.sharding import is_sharded

# Elements of one reduction of `average_gradients`.
BUCKET = 1 << 25


def world_size() -> int:
    """Processes of this training; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this is the process that writes files and speaks."""
    return world_size() == 1 or dist.get_rank() == 0


def mean_over_ranks_(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, in place; the same bits in each of them."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """The mean gradient over all processes, after `backward()` and before `sparsifier.step()`.

    For data-parallel training without a wrapper: parameters may come and go at mask updates, which
    `DistributedDataParallel` does not allow. Every process has to start from the same weights, and to use every
    parameter in each step. Nothing happens in a single process, inside that wrapper, or to what `fully_shard` cut up:
    both average gradients themselves.
    """
    if world_size() == 1 or isinstance(model, nn.parallel.DistributedDataParallel):
        return
    gradients: dict[torch.dtype, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None and not is_sharded(parameter.grad):
            gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for same in gradients.values():
        while same:
            bucket, elements = [], 0
            while same and (not bucket or elements + same[0].numel() <= BUCKET):
                elements += same[0].numel()
                bucket.append(same.pop(0))
            flat = mean_over_ranks_(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
