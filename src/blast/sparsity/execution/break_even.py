"""From which sparsity on a model is trained in its sparse state: read from a table of the GPU, or judged without one.

The table is `blast_kernels/tuned/<gpu>.json`, its part `train_break_even`: rows `{"block": [64, 64], "gate": "untied",
"in": 2048, "hidden": 8192, "sparsity": 0.5}`, each measured as forward and backward of one MLP in bfloat16 on 8192
tokens against the compiled dense one. Of a block and gate the shape nearest by its number of weights counts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from blast_kernels.tables.break_even import TUNED, gpu_name, read_part, rows_of_nearest_shape

from blast.block_sparse.blocks import BlockShape

# Without a table, by the shorter side of a block. Judged, on the safe side: in a sweep (kernels/NOTES.md) an H100 was
# 2.5 times as fast and more at 0.8 with blocks of 128, and 4 times at 0.95 with blocks of 64 (GPT-2 XL).
JUDGED = {128: 0.6, 64: 0.7, 32: 0.85, 16: 0.95}
NEVER = 1.0
KEYS = ("block", "gate", "in", "hidden", "sparsity")


def training_break_even(
    device: torch.device, block: BlockShape, gate: str, shape: tuple[int, int], folder: Path = TUNED
) -> float:
    """The sparsity from which sparse training is faster.

    Args:
        device: Where the model is.
        block: Of the matrices.
        gate: `none`, `untied` or `tied`.
        shape: `(hidden, in)` of the up projection.
        folder: Where the tables are.

    Returns:
        A sparsity; 1, which none reaches, on a device that is no GPU.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    gpu = gpu_name(device)
    if gpu is None:
        return NEVER
    measured = read_part(gpu, "train_break_even", KEYS, folder)
    rows = [row for row in measured if row["block"] == list(block) and row["gate"] == gate]
    if not rows:
        return JUDGED.get(max((known for known in JUDGED if known <= min(block)), default=0), NEVER)
    return rows_of_nearest_shape(rows, shape)[0]["sparsity"]
