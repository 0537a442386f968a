"""Data-parallel and fully sharded training of one model by several processes, and its full state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from blast.block_sparse.sharding import sharded_modules
from blast.distributed import world_size
from blast.training.compilation import repeated_blocks
from blast.training.settings import PARALLEL


def parallelize(model: nn.Module, way: str) -> nn.Module:
    """Prepares a model for training by several processes. A single process keeps the model as it is.

    Args:
        model: On its device, with the same weights in each process; before its optimizer is created.
        way: `average`: no wrapper, for `blast.average_gradients`. `ddp`: `DistributedDataParallel`. `fully_shard`
            (FSDP2): each process holds a part of parameters, gradients and optimizer state; each transformer block is
            one FSDP unit.

    Returns:
        The model, or its wrapper.
    """
    if way not in PARALLEL:
        raise ValueError(f"way is {way!r}; use one of {', '.join(PARALLEL)}")
    if world_size() == 1 or way == "average":
        return model
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for block in repeated_blocks(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the model, so that every operation on it needs all processes."""
    return bool(sharded_modules(model))


def broadcast(flag: bool, model: nn.Module) -> bool:
    """The flag of the first process if the model is fully sharded; else the process's own flag."""
    if not is_fully_sharded(model):
        return flag
    tensor = torch.tensor([flag], dtype=torch.uint8, device=next(model.parameters()).device)
    dist.broadcast(tensor, 0)
    return bool(tensor.item())


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """States of model and optimizer to save; if fully sharded, the full ones, on the CPU of the first process."""
    if not is_fully_sharded(model):
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], optimizer_state: dict[str, Any]
) -> None:
    """Loads the result of `full_state`; every process has read all of it."""
    if not is_fully_sharded(model):
        model.load_state_dict(state)
        optimizer.load_state_dict(optimizer_state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=optimizer_state, options=options)


def full_model_state(model: nn.Module) -> Mapping[str, Any]:
    """The full parameters of a fully sharded model, on the CPU of the first process; the others get nothing."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
