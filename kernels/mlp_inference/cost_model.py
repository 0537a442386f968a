"""An estimate of the time that a product takes with a config, for token counts and shapes that were not measured.

A multiprocessor runs its programs in waves. A wave takes as long as its slowest resource: one program's chain of
dependent steps, or the L2 cache, tensor cores and stores of all programs that share the multiprocessor. The longest
block row and the device memory are lower bounds.

The constants were fitted to the 946 recorded timings on an H100 of products with 128 tokens or more (robust least
squares on the logarithm). Half of the estimates are within 7 % of the measured time, nine of ten within 21 %. Between
the recorded configs of one product, the one with the smallest estimate costs 1.4 % over the fastest on average. The
estimate knows nothing of `group`, nor how well operands stay in the L2 cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from blast_kernels.common.constants import MULTIPROCESSORS
from blast_kernels.mlp_inference.heuristics import SHARED_MEMORY, KernelConfig, shared_memory

# Microseconds: a launch; start of a program; a step of the loop, whose loads depend on the step before; the sum of a
# split row.
LAUNCH, START, STEP, JOIN = 3.06, 0.177, 0.24, 2.45
# Microseconds a byte of operands and a byte of results of one multiprocessor, a flop of its tensor cores, and a byte of
# device memory.
OPERANDS, RESULTS, FLOP, MEMORY = 1.57e-5, 2.82e-5, 1.96e-7, 4.47e-7
# The longest of the block rows: the mean length plus so many times its square root.
SPREAD = 0.43
# Factors of the work: of the persistent kernel, which hides start and end of its tiles; of that kernel if it holds a
# gate of 128 rows, which leaves it three stages; of other kernels with accumulators of 128 × 128 or more.
PERSISTENT, HOLDS_GATE, WIDE = 0.98, 1.125, 1.05
WIDE_TILE = 128 * 128
# Of one multiprocessor: bytes of shared memory, what a program takes beside its own, registers, most programs counted.
MEMORY_OF_ALL, MEMORY_OF_NONE, REGISTERS, MOST = 233_472, 1024, 65_536, 8
# Registers of a thread beside its accumulators, and the most that it can have.
OTHER_REGISTERS, MOST_REGISTERS = 48, 255


class Product(NamedTuple):
    """A product, as the choice of its config sees it.

    Attributes:
        tokens: Rows of the activations.
        row_count: Block rows that are computed.
        row_blocks: Mean number of blocks of a row; gate and up together where their masks are separate.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: One of `GATES`.
    """

    tokens: int
    row_count: int
    row_blocks: float
    b_out: int
    b_in: int
    gate: str


def estimate(config: KernelConfig, product: Product) -> float:
    """Microseconds that the product takes on an H100 in half precision, by the model above.

    Never falls if the number of tokens grows.
    """
    alone, shared = _program(config, product, product.row_blocks)
    together = _resident(config, product.gate)
    programs = _programs(config, product)
    full, rest = divmod(programs, MULTIPROCESSORS * together)
    time = full * max(alone, together * shared)
    if rest:
        time += max(alone, math.ceil(rest / MULTIPROCESSORS) * shared)
    longest, _ = _program(config, product, product.row_blocks + SPREAD * math.sqrt(product.row_blocks))
    return LAUNCH + max(time, longest, MEMORY * _bytes(product))


def _program(config: KernelConfig, product: Product, row_blocks: float) -> tuple[float, float]:
    """Microseconds of one program alone on a multiprocessor, and its share of a full one."""
    columns = max(config.k, product.b_in) if config.kernel == "stream" else config.k
    rows = config.slice * (2 if product.gate == "tied" else 1)
    steps = row_blocks * product.b_in / columns / config.split
    chain = START + steps * STEP + (JOIN if config.split > 1 else 0.0)
    operands, flops = 2 * columns * (rows + config.tile), 2 * columns * rows * config.tile
    work = steps * max(operands * OPERANDS, flops * FLOP) + 2 * config.tile * config.slice * RESULTS
    if config.kernel == "persistent":
        work *= PERSISTENT * (HOLDS_GATE if product.gate == "untied" and config.slice == 128 else 1.0)
        return work, work
    work *= WIDE if config.tile * rows >= WIDE_TILE else 1.0
    return max(chain, work), work


def _resident(config: KernelConfig, gate: str) -> int:
    """Programs that share a multiprocessor."""
    if config.kernel == "persistent":
        return 1
    elements = config.tile * config.slice * {"none": 1.0, "untied": 1.5, "tied": 2.0}[gate]
    threads = 32 * config.warps
    registers = min(MOST_REGISTERS, elements / threads + OTHER_REGISTERS)
    by_memory = MEMORY_OF_ALL // (min(shared_memory(config, gate), SHARED_MEMORY) + MEMORY_OF_NONE)
    return max(1, min(int(by_memory), int(REGISTERS / (threads * registers)), MOST))


def _programs(config: KernelConfig, product: Product) -> int:
    return product.row_count * (product.b_out // config.slice) * -(-product.tokens // config.tile) * config.split


def _bytes(product: Product) -> float:
    """Bytes of the weights, each read once, and of the result."""
    weights = product.row_blocks * product.b_out * product.b_in * (2 if product.gate == "tied" else 1)
    return 2 * product.row_count * (weights + product.tokens * product.b_out)
