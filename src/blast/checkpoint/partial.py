"""Loads the part of one process: each matrix of the checkpoint is read in parts, and none is made whole."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blast.block_sparse.csr import BlockIndex
from blast.checkpoint.builders import skeleton
from blast.checkpoint.manifest import read_manifest
from blast.checkpoint.processing import warn_of_changes
from blast.checkpoint.reading import StoredTensors, fill
from blast.errors import BlastError
from blast.tensor_parallel.model import Split, join, split_model
from blast.tensor_parallel.processes import Processes, meet, own_device

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def load_part(folder: Path, device: torch.device | None, where: bool | DeviceMesh) -> nn.Module:
    """Loads the part of this process. All processes have to call it.

    Args:
        folder: The folder of the checkpoint; each process may have a copy of its own.
        device: Device of the part; None for the GPU of this process, or the CPU.
        where: See `meet`.

    Returns:
        The part, which computes what the whole model computes, together with the other processes. With one process it
        is the whole model.

    Raises:
        BlastError: if the processes do not meet, read different checkpoints, or one of them fails; see `split_model`.
    """
    processes = meet(where)
    manifest = processes.together(lambda: read_manifest(folder))
    processes.check_equal(
        manifest["digest"],
        "different checkpoints were read",
        f"copy one checkpoint to all machines, as {folder}",
    )
    model, split = processes.together(lambda: _part(folder, manifest, device or own_device(), processes))
    return model if split is None else join(model, split, processes)


def _part(
    folder: Path, manifest: dict[str, Any], device: torch.device, processes: Processes
) -> tuple[nn.Module, Split | None]:
    warn_of_changes(folder, manifest)
    model = skeleton(manifest)
    tensors = StoredTensors(folder, manifest)
    if processes.size == 1:
        fill(model, manifest, tensors, device)
        return model, None

    @cache
    def index_of(name: str) -> BlockIndex:
        return tensors.index(name, manifest["matrices"][name])

    try:
        split = split_model(model, manifest["matrices"], index_of, processes.rank, processes.size)
    except BlastError:
        tensors.file.check_unaltered()  # the better reason
        raise
    tensors.parts = split.parts
    fill(model, manifest | {"matrices": split.matrices}, tensors, device)
    return model, split
