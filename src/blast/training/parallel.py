"""Ways to train one model by several processes, and the whole of what they hold in parts."""

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


def spread(model: nn.Module, way: str) -> nn.Module:
    """Readies a model, the same in each process, for training; a single process keeps it as it is.

    Args:
        model: On its device; before its optimizer is made.
        way: `average`: as it is, for `blast.average_gradients`; `ddp`: in `DistributedDataParallel`; `fully_shard`:
            each process holds a part of parameters, gradients and optimizer state (FSDP2), a transformer block a unit.

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


def in_parts(model: nn.Module) -> bool:
    """Whether each process holds a part of it, so that all of them have to take part in whatever is done with it."""
    return bool(sharded_modules(model))


def agreed(wish: bool, model: nn.Module) -> bool:
    """What the first process wishes, for a model in parts; its own wish for any other."""
    if not in_parts(model):
        return wish
    flag = torch.tensor([wish], dtype=torch.uint8, device=next(model.parameters()).device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """State of model and optimizer to save; of a model in parts the whole of it, on the CPU of the first process."""
    if not in_parts(model):
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def put_back(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], optimizer_state: Mapping[str, Any]
) -> None:
    """Takes up what `whole_state` gave; every process has read all of it."""
    if not in_parts(model):
        model.load_state_dict(state)
        optimizer.load_state_dict(optimizer_state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=optimizer_state, options=options)


def gathered_state(model: nn.Module) -> Mapping[str, Any]:
    """The parameters of a model in parts, whole and on the CPU of the first process; the others get nothing."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
