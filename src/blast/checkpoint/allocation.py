"""Makes the memory of all tensors of a checkpoint, before the first of them is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from blast.errors import BlastError

GB = 1e9
Key = TypeVar("Key")
# Inference needs more than the weights: room for this share of them is what the message asks for.
ROOM = 1.1


class TooLittleMemoryError(BlastError):
    """A device has too little memory for a checkpoint."""


class Wanted(NamedTuple):
    """A tensor to make.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        device: Its device.
    """

    shape: list[int]
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def allocate(wanted: Mapping[Key, Wanted], folder: Path) -> dict[Key, Tensor]:
    """Tensors without values, by their keys.

    Raises:
        TooLittleMemoryError: if a device has too little; the message says how much is needed and what would do.
    """
    made: dict[Key, Tensor] = {}
    for name, each in wanted.items():
        try:
            made[name] = torch.empty(each.shape, dtype=each.dtype, device=each.device)
        except (RuntimeError, MemoryError) as error:
            if not _is_lack_of_memory(error):
                raise
            needed = sum(other.bytes for other in wanted.values() if other.device == each.device)
            made.clear()  # the error holds this frame, and with it the tensors
            raise TooLittleMemoryError(_too_small(folder, each.device, needed)) from None
    return made


def _is_lack_of_memory(error: RuntimeError | MemoryError) -> bool:
    # The allocator of the CPU has no class of errors of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _too_small(folder: Path, device: torch.device, needed: int) -> str:
    start = f"the weights in {folder} need {needed / GB:.2f} GB on '{device}'"
    if device.type == "cpu":
        return f"{start}, more than this machine can give; load them on a machine with at least that much free memory."
    has = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        has = f", which has {free / GB:.2f} of its {total / GB:.2f} GB free"
    return (
        f"{start}{has}; free memory there, take a GPU with at least {ROOM * needed / GB:.2f} GB free, "
        "or load them onto the CPU."
    )
