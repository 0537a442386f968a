"""Data-parallel training: the number of processes, means over them, and averaged gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blast.block_sparse.sharding import is_sharded
from blast.errors import check_argument

# Largest number of elements in one all-reduce of `average_gradients`.
BUCKET = 1 << 25


def world_size() -> int:
    """Number of processes of this training; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this is the process that writes files and prints."""
    return world_size() == 1 or dist.get_rank() == 0


def mean_over_ranks_(tensor: Tensor) -> Tensor:
    """Replaces a tensor by its mean over all processes, bit-identical in each of them, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Averages the gradients over all processes. Call it after `backward()` and before `sparsifier.step()`.

    It is for data-parallel training without a wrapper, because mask updates replace parameters and
    `DistributedDataParallel` does not allow that. Every process must start from the same weights and use every
    parameter in each step.

    It does nothing in a single process, inside `DistributedDataParallel`, or for gradients of `fully_shard`: both
    wrappers average gradients themselves.

    Args:
        model: The model; its gradients are changed in place.

    Raises:
        BlastError: if it is no model.

    Example:
        >>> model(torch.arange(8)[None]).logits.sum().backward()
        >>> blast.average_gradients(model)
    """
    check_argument("the model", model, nn.Module, "a torch.nn.Module")
    if world_size() == 1 or isinstance(model, nn.parallel.DistributedDataParallel):
        return
    gradients: dict[torch.dtype, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None and not is_sharded(parameter.grad):
            gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for same in gradients.values():
        while same:
            bucket: list[Tensor] = []
            elements = 0
            while same and (not bucket or elements + same[0].numel() <= BUCKET):
                elements += same[0].numel()
                bucket.append(same.pop(0))
            flat = mean_over_ranks_(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
