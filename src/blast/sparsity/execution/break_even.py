"""The sparsity above which sparse training is faster: from a table of measurements, or from a heuristic.

The table is the part `train_break_even` of `blast_kernels/tuned/<gpu>.json`. A row is `{"block": [64, 64], "gate":
"untied", "in": 2048, "hidden": 8192, "sparsity": 0.5}`: forward and backward of one MLP in bfloat16 on 8192 tokens,
against the compiled dense MLP. Among the rows of a block and gate, the one with the nearest number of weights is used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from blast_kernels.tables.break_even import TUNED, gpu_name, read_part, rows_of_nearest_shape

from blast.block_sparse.blocks import BlockShape

# Without a table: by the shorter side of a block, on the safe side. In a sweep (kernels/NOTES.md) an H100 was at least
# 2.5 times as fast at 0.8 with blocks of 128, and 4 times at 0.95 with blocks of 64 (GPT-2 XL).
HEURISTIC = {128: 0.6, 64: 0.7, 32: 0.85, 16: 0.95}
NEVER = 1.0
KEYS = ("block", "gate", "in", "hidden", "sparsity")


def training_break_even(
    device: torch.device, block: BlockShape, gate: str, shape: tuple[int, int], folder: Path = TUNED
) -> float:
    """The sparsity above which sparse training is faster.

    Args:
        device: Device of the model.
        block: Shape of a block.
        gate: `none`, `untied` (separate masks of gate and up) or `tied` (one shared mask).
        shape: `(hidden, in)` of the up projection.
        folder: Folder of the tables.

    Returns:
        A sparsity; 1 (never) if the device is no GPU.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    gpu = gpu_name(device)
    if gpu is None:
        return NEVER
    measured = read_part(gpu, "train_break_even", KEYS, folder)
    rows = [row for row in measured if row["block"] == list(block) and row["gate"] == gate]
    if not rows:
        return min((sparsity for side, sparsity in HEURISTIC.items() if side <= min(block)), default=NEVER)
    return float(rows_of_nearest_shape(rows, shape)[0]["sparsity"])
