"""Kernel configs for GPUs that are no Hopper: those of the rules, made to fit. None of them was measured.

The rules (`heuristics`) were measured on an H100. Elsewhere a config has to fit the shared memory and must not need
Hopper's own instructions. Where tensor cores read registers (all but compute capability 9 and 10), a large tile takes
eight warps, because four would spill.
"""

from __future__ import annotations

from blast_kernels.common.gpu_limits import GpuLimits
from blast_kernels.mlp_inference.heuristics import KernelConfig, shared_memory

# Bytes that Triton adds on GPUs other than Hopper: up to 512 were seen.
SLACK = 1024
# float32 elements of accumulators that four warps keep in registers beside everything else.
WIDE_TILE = 64 * 128
# At many tokens two programs should fit a multiprocessor, so that they hide each other's start and end. With fewer than
# three stages, loads would wait for products.
MANY, LEAST_STAGES = 64, 3
SMALLEST = 16


def memory_of(config: KernelConfig, gate: str, limits: GpuLimits, x_item: int = 2, w_item: int = 2) -> int:
    """Bytes of shared memory that one program takes at most on a GPU; see `heuristics.shared_memory`.

    Args:
        config: How the product is run.
        gate: One of `GATES`.
        limits: The GPU.
        x_item: Bytes of an activation.
        w_item: Bytes of a weight.
    """
    if not limits.multiplies_from_shared_memory:
        config = config._replace(stages=max(1, config.stages - 1))
    return shared_memory(config, gate, x_item, w_item) + (0 if limits.is_hopper else SLACK)


def fitted(
    config: KernelConfig, b_in: int, gate: str, limits: GpuLimits, x_item: int = 2, w_item: int = 2
) -> KernelConfig:
    """A config that the GPU can run: on a Hopper the same, elsewhere one that fits.

    Args:
        config: A config for a Hopper, or one of kernel `stream` where there is no tensor memory accelerator.
        b_in: Columns of a block.
        gate: One of `GATES`.
        limits: The GPU.
        x_item: Bytes of an activation.
        w_item: Bytes of a weight.
    """
    if limits.is_hopper:
        return config
    if config.kernel == "persistent":
        config = config._replace(kernel="tiles", tile=128, stages=3, warps=4, weights_first=False)
    wide = config.tile * config.slice * (1 if gate == "none" else 2) > WIDE_TILE
    if wide and not limits.multiplies_from_shared_memory:
        config = config._replace(warps=8)

    def fits(most: int) -> bool:
        return memory_of(config, gate, limits, x_item, w_item) <= most

    while config.tile >= MANY and config.stages > LEAST_STAGES and not fits(limits.shared_memory // 2):
        config = config._replace(stages=config.stages - 1)
    while not fits(limits.shared_memory):
        smaller = _smaller(config, b_in)
        if smaller is None:
            break
        config = smaller
    return config


def _smaller(config: KernelConfig, b_in: int) -> KernelConfig | None:
    """The next config that takes less memory: fewer stages, then shorter steps, fewer tokens, fewer rows."""
    if config.stages > 2:
        return config._replace(stages=config.stages - 1)
    # A step of `stream` spans whole blocks.
    least = b_in if config.kernel == "stream" else min(SMALLEST, b_in)
    if config.k > least:
        return config._replace(k=max(least, config.k // 2))
    if config.tile > SMALLEST:
        return config._replace(tile=config.tile // 2)
    if config.slice > SMALLEST:
        return config._replace(slice=config.slice // 2)
    return None
