"""What blocks are ranked by: the Frobenius norm of a weight or of a gradient, or a reproducible random order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.errors import BlastError
from blast.sparsity.blocks import BlockShape, tiles


def block_norms(weight: Tensor, block: BlockShape, name: str = "the weight") -> Tensor:
    """Frobenius norm of each block.

    Args:
        weight: `[out, in]`, any floating dtype and strides.
        block: Shape of a block.
        name: What to call the matrix in an error.

    Returns:
        Norms `[out / b_out, in / b_in]`, float32.

    Raises:
        BlastError: if the block does not divide the weight.
    """
    return block_squares(tiles(weight, block, name)).sqrt()


def block_squares(blocks: Tensor) -> Tensor:
    """Sum of squares of each block of `tiles`: `[out / b_out, in / b_in]`, float32."""
    return blocks.float().square().sum(dim=(1, 3))


def joint_norms(weights: Sequence[Tensor], block: BlockShape, name: str = "the weight") -> Tensor:
    """Norm of each block over several matrices that share one mask: the root of their mean square.

    The mean, not the sum, so that a shared block and a single one compare fairly in a ranking over many matrices.

    Args:
        weights: One or more `[out, in]` of equal shape.
        block: Shape of a block.
        name: What to call the matrices in an error.

    Returns:
        Norms `[out / b_out, in / b_in]`, float32.
    """
    return mean_norms([block_norms(weight, block, name) for weight in weights])


def mean_norms(norms: Sequence[Tensor]) -> Tensor:
    """Root of the mean square of the norms of several matrices `[rows, cols]`; those of a single one as they are."""
    return norms[0] if len(norms) == 1 else torch.stack([norm.square() for norm in norms]).mean(0).sqrt()


def random_scores(grid: tuple[int, int], *seeds: int | str, device: torch.device | str = "cpu") -> Tensor:
    """Random scores that depend on the seeds alone, on every device and whatever was drawn before.

    Args:
        grid: Blocks each way.
        *seeds: What the scores depend on: seed, purpose, step, index of the matrix.
        device: Where to put them.

    Returns:
        Uniform scores in [0, 1) `[rows, cols]`, float32.
    """
    digest = hashlib.sha256("/".join(map(str, seeds)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(grid, generator=generator).to(device)


def check_finite(norms: np.ndarray, what: str, step: int) -> None:
    """Refuses norms of which one is NaN or infinite: a ranking by them would be arbitrary.

    Raises:
        BlastError: with the number of such blocks.
    """
    if not np.isfinite(norms).all():
        bad = int(np.count_nonzero(~np.isfinite(norms)))
        raise BlastError(
            f"at step {step} {what} is NaN or infinite in {bad} of {norms.size} blocks, so no mask can be chosen; "
            "the training has diverged: lower the learning rate, or look for the first NaN in the loss."
        )
