"""Masks to time training with: uniform at random, and uniform ones that leave no hidden block dead."""

from __future__ import annotations

import torch
from torch import Tensor

from blast.benchmark.kernel_masks import MlpMasks, random_masks
from blast.benchmark.kernel_weights import MlpSize
from blast.errors import unknown_name
from blast.sparsity.blocks import keep_count

KINDS = ("uniform", "every_hidden_live")


def training_masks(
    kind: str, size: MlpSize, tied: bool, sparsity: float, generator: torch.Generator
) -> MlpMasks | None:
    """Masks of one MLP with exactly the budget of each matrix, drawn on the device of the generator.

    Args:
        kind: `uniform`, or `every_hidden_live`: each row of gate and up and each column of the down projection has a
            block, the rest are uniform. Uniform masks alone leave hidden blocks dead, which the kernels skip.
        size: The MLP.
        tied: Whether gate and up share a mask.
        sparsity: Share of empty blocks.
        generator: Its state decides the masks.

    Returns:
        The masks; None if the budget has fewer blocks than there are hidden blocks, so that some must be dead.

    Raises:
        BlastError: for an unknown kind.
    """
    if kind not in KINDS:
        raise unknown_name("mask", kind, KINDS)
    if kind == "uniform":
        shape = (size.hidden, size.ffn, size.gated, tied, sparsity, size.block)
        return random_masks(kind, *shape, generator, size.down_block)
    (b_out, b_in), (d_out, d_in) = size.block, size.down_block
    front = (size.ffn // b_out, size.hidden // b_in)
    down = (size.ffn // d_in, size.hidden // d_out)  # transposed: a row for each hidden block
    if any(keep_count(rows * cols, sparsity) < rows for rows, cols in (front, down)):
        return None
    up = _no_empty_row(*front, sparsity, generator)
    gate = (up if tied else _no_empty_row(*front, sparsity, generator)) if size.gated else None
    return MlpMasks(up, _no_empty_row(*down, sparsity, generator).t().contiguous(), gate)


def live_share(masks: MlpMasks) -> float:
    """Share of the hidden blocks that are neither provably zero nor unread."""
    live = masks.down.any(0)
    if masks.gate is not None:
        live = live & masks.up.any(1) & masks.gate.any(1)
    return live.float().mean().item()


def _no_empty_row(rows: int, cols: int, sparsity: float, generator: torch.Generator) -> Tensor:
    chance = torch.rand(rows, cols, generator=generator, device=generator.device)
    # The best of each row goes before all others.
    chance[torch.arange(rows, device=chance.device), chance.argmax(1)] += 1
    mask = torch.zeros(rows * cols, dtype=torch.bool, device=chance.device)
    mask[chance.flatten().topk(keep_count(rows * cols, sparsity)).indices] = True
    return mask.view(rows, cols)
