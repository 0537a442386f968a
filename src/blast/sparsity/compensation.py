"""One-shot block pruning that compensates in the weights that stay: the optimal brain surgeon on blocks.

SparseGPT (arXiv 2301.00774) removes single weights column by column, and changes the later columns so that the output
of the layer changes least. Here whole blocks are removed, one block column after the other. `H = mean(x xᵀ)` is the
Hessian of the layer's squared error. Removing the columns `J` of a row `w` costs `w_J (H⁻¹_JJ)⁻¹ w_Jᵀ` at least, which
changing the rest of the row by `-w_J (H⁻¹_JJ)⁻¹ H⁻¹_J,rest` attains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blast.block_sparse.blocks import BlockShape

# Added to the diagonal of the Hessian, as a share of its mean: inputs may be linearly dependent.
DAMPING = 0.01


def damped_inverse(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """The inverse of a damped second moment `[in, in]`, float64."""
    hessian = moment.double()
    mean = hessian.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    hessian = hessian + damping * mean * torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def block_saliency(weight: Tensor, inverse: Tensor, block: BlockShape) -> Tensor:
    """The least squared error of the output that removing each block costs, the other blocks compensating.

    Args:
        weight: `[out, in]`.
        inverse: Inverse Hessian `[in, in]`, float64.
        block: Shape of a block.

    Returns:
        `[out / b_out, in / b_in]`, float32.
    """
    columns = []
    for first in range(0, weight.shape[1], block.cols):
        part = slice(first, first + block.cols)
        own = torch.linalg.inv(inverse[part, part])
        values = weight[:, part].double()
        cost = ((values @ own) * values).sum(1)
        columns.append(cost.view(-1, block.rows).sum(1))
    return torch.stack(columns, 1).float()


@torch.no_grad()
def remove_blocks_(weight: Tensor, mask: Tensor, inverse: Tensor, block: BlockShape) -> None:
    """Sets the dead blocks of a weight to zero, and changes the blocks to their right so that the output changes least.

    Args:
        weight: `[out, in]`, changed in place.
        mask: Bool `[out / b_out, in / b_in]`, true where live.
        inverse: Inverse Hessian `[in, in]`, float64; not changed.
        block: Shape of a block.
    """
    values, inverse = weight.double(), inverse.clone()
    dead = ~mask.to(weight.device).repeat_interleave(block.rows, 0)  # [out, in / b_in]
    for number, first in enumerate(range(0, weight.shape[1], block.cols)):
        part, rest = slice(first, first + block.cols), slice(first + block.cols, None)
        # How a removed part spreads over the columns to its right, for all rows alike.
        spread = torch.linalg.solve(inverse[part, part], inverse[part, rest])
        removed = values[:, part] * dead[:, number, None]
        values[:, rest] -= removed @ spread
        values[:, part] -= removed
        # From here on only the columns to the right can change.
        inverse[rest, rest] -= inverse[rest, part] @ spread
    # Rounding leaves nothing in dead blocks.
    values *= mask.to(weight.device).repeat_interleave(block.rows, 0).repeat_interleave(block.cols, 1)
    weight.copy_(values)
