"""Batched host-to-device copy: many small arrays go to a device in one transfer.

One transfer for each array would cost more than moving its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Bytes. Kernels load row lists in whole cache lines.
ALIGNMENT = 128


def batched_copy(arrays: Sequence[np.ndarray], device: torch.device | str) -> list[Tensor]:
    """Copies arrays to a device in one transfer, without waiting for it.

    The tensors share one piece of memory. Each starts at an address that is a multiple of 128 bytes. On a CPU they are
    copies as well.

    Args:
        arrays: Of any shapes, and of dtypes that torch has.
        device: Where the copies go.

    Returns:
        A contiguous tensor for each array, with its shape and dtype.
    """
    device = torch.device(device)
    by_dtype: dict[np.dtype, list[int]] = {}
    for place, array in enumerate(arrays):
        by_dtype.setdefault(array.dtype, []).append(place)
    order = [place for places in by_dtype.values() for place in places]
    padded = {place: -(-arrays[place].nbytes // ALIGNMENT) * ALIGNMENT for place in order}
    staged = torch.empty(sum(padded.values()), dtype=torch.uint8, pin_memory=device.type == "cuda")
    host, at = staged.numpy(), 0
    for place in order:
        host[at : at + arrays[place].nbytes] = np.ascontiguousarray(arrays[place]).reshape(-1).view(np.uint8)
        at += padded[place]
    copied = staged.to(device, non_blocking=True)
    tensors: list[Tensor] = [copied] * len(arrays)
    for region, (dtype, places) in zip(
        copied.split([sum(padded[place] for place in places) for places in by_dtype.values()]),
        by_dtype.items(),
        strict=True,
    ):
        sizes = [size for place in places for size in (arrays[place].size, padded[place] // dtype.itemsize)]
        sizes[1::2] = [whole - own for own, whole in zip(sizes[::2], sizes[1::2], strict=True)]
        parts = region.view(_torch_dtype(dtype)).split(sizes)[::2]
        for place, part in zip(places, parts, strict=True):
            tensors[place] = part if arrays[place].ndim == 1 else part.view(arrays[place].shape)
    return tensors


def batched_copy_by_device(
    groups: Sequence[tuple[torch.device, Sequence[np.ndarray]]],
) -> list[list[Tensor]]:
    """`batched_copy` for several devices, with one transfer to each.

    Args:
        groups: Pairs of a device and the arrays for it.

    Returns:
        The tensors of each group.
    """
    tensors: list[list[Tensor]] = [[] for _ in groups]
    for device in dict.fromkeys(device for device, _ in groups):
        places = [place for place, group in enumerate(groups) if group[0] == device]
        parts = iter(batched_copy([array for place in places for array in groups[place][1]], device))
        for place in places:
            tensors[place] = [next(parts) for _ in groups[place][1]]
    return tensors


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
