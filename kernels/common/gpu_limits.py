"""What a GPU allows a kernel: its compute capability, its multiprocessors, and the shared memory of one program."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from blast_kernels.common.constants import MULTIPROCESSORS


class GpuLimits(NamedTuple):
    """Limits of a GPU.

    Attributes:
        capability: Compute capability, major and minor.
        multiprocessors: How many it has.
        shared_memory: Most bytes of shared memory of one program.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int

    @property
    def has_tma(self) -> bool:
        """Whether it has a tensor memory accelerator."""
        return self.capability >= (9, 0)

    @property
    def is_hopper(self) -> bool:
        """Whether kernels written for Hopper's `wgmma` run. They run on no other GPU, newer ones included."""
        return self.capability[0] == 9

    @property
    def multiplies_from_shared_memory(self) -> bool:
        """Whether its tensor cores read both operands from shared memory: Hopper's and those of Blackwell's data center
        GPUs (10.x). Others read registers, and Triton then needs one buffer less."""
        return self.capability[0] in (9, 10)


HOPPER = GpuLimits((9, 0), MULTIPROCESSORS, 232_448)
# Without a device at hand, for tests that compile for them. By the CUDA programming guide, table of technical
# specifications: shared memory of a thread block; multiprocessors by the data sheets.
KNOWN = {
    "A100": GpuLimits((8, 0), 108, 166_912),
    "RTX 4090": GpuLimits((8, 9), 128, 101_376),
    "H100": HOPPER,
    "B200": GpuLimits((10, 0), 148, 232_448),
    "RTX 5090": GpuLimits((12, 0), 170, 101_376),
}


def gpu_limits(device: torch.device) -> GpuLimits:
    """Limits of a device; those of an H100 where there is no GPU (Triton's interpreter)."""
    return _gpu_limits(device) if device.type == "cuda" else HOPPER


@cache
def _gpu_limits(device: torch.device) -> GpuLimits:
    properties = torch.cuda.get_device_properties(device)
    capability = torch.cuda.get_device_capability(device)
    memory = properties.shared_memory_per_block_optin
    return GpuLimits(capability, properties.multi_processor_count, memory)
