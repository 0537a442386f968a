"""Blocks of a weight matrix: shapes, counts and views.

A weight has the shape `[out, in]`, a block `b_out` rows and `b_in` columns. A mask has one bool per block. Nothing here
imports torch at run time, so that a grid of runs can be checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from blast.errors import BlastError, one_line

if TYPE_CHECKING:
    from torch import Tensor

COMMON_SIDES = (8, 16, 32, 64, 128)


class BlockShape(NamedTuple):
    """Rows and columns of a block of a weight `[out, in]`."""

    rows: int
    cols: int

    def __str__(self) -> str:
        return str(self.rows) if self.rows == self.cols else f"{self.rows}x{self.cols}"


def as_block(block: int | Sequence[int]) -> BlockShape:
    """The block shape of a square's side, or of a pair `(b_out, b_in)`.

    Raises:
        BlastError: if `block` is neither one positive integer nor two.
    """
    given = _plain(block)
    sides = (given, given) if isinstance(given, int) else given
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise _bad_block(block)
    rows, cols = map(_plain, sides)
    if any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in (rows, cols)):
        raise _bad_block(block)
    return BlockShape(rows, cols)


def _plain(value: Any) -> Any:
    """Numbers of NumPy or torch as Python's own; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _bad_block(block: object) -> BlastError:
    return BlastError(f"block is {one_line(block)}; give one positive whole number (a square) or two, [b_out, b_in].")


def legal_sides(shape: Sequence[int]) -> list[int]:
    """The common square sides (8 to 128) that divide a matrix of this shape `(out, in)`."""
    return [side for side in COMMON_SIDES if shape[0] % side == 0 and shape[1] % side == 0]


def block_grid(shape: Sequence[int], block: BlockShape, name: str = "the weight") -> tuple[int, int]:
    """Number of block rows and block columns of a matrix.

    Args:
        shape: `(out, in)` of the weight.
        block: Shape of a block.
        name: Name of the matrix for the error message.

    Returns:
        `(out / b_out, in / b_in)`.

    Raises:
        BlastError: if the block does not divide the matrix; the message lists the common sides that do.
    """
    if shape[0] % block.rows or shape[1] % block.cols:
        sides = ", ".join(map(str, legal_sides(shape))) or "none"
        raise BlastError(
            f"block {block} does not divide '{name}' of shape {shape[0]}x{shape[1]} (out x in); "
            f"of the square blocks {', '.join(map(str, COMMON_SIDES))} these do: {sides}."
        )
    return shape[0] // block.rows, shape[1] // block.cols


def keep_count(blocks: int, sparsity: float) -> int:
    """Number of live blocks at a sparsity, out of `blocks`: rounded, and at least 1."""
    return max(1, round((1 - sparsity) * blocks))


def tiles(weight: Tensor, block: BlockShape, name: str = "the weight", transposed: bool = False) -> Tensor:
    """View of a weight as blocks.

    Args:
        weight: `[out, in]` with any strides, or `[in, out]` if `transposed`; or a stack `[experts, out, in]` of them.
        block: Shape of a block.
        name: Name of the matrix for the error message.
        transposed: Whether `weight` is stored as `[in, out]` (Conv1D).

    Returns:
        View `[out / b_out, b_out, in / b_in, b_in]` of the same memory; `[experts, …]` of a stack.

    Raises:
        BlastError: if the block does not divide the weight.
    """
    *stack, out, into = weight.shape
    *jump, down, along = weight.stride()
    if transposed:
        out, into, down, along = into, out, along, down
    rows, cols = block_grid((out, into), block, name)
    # One as_strided instead of several reshapes: this runs for every matrix in every step.
    strides = (*jump, down * block.rows, down, along * block.cols, along)
    return weight.as_strided((*stack, rows, block.rows, cols, block.cols), strides)


def expand_mask(mask: Tensor, block: BlockShape) -> Tensor:
    """Mask of elements `[out, in]` from a mask of blocks `[out / b_out, in / b_in]`."""
    return mask.repeat_interleave(block.rows, dim=0).repeat_interleave(block.cols, dim=1)


def clear_dead_(weight: Tensor, mask: Tensor, block: BlockShape) -> Tensor:
    """Sets the dead blocks of a weight, gradient or optimizer moment to zero, in place.

    Args:
        weight: `[out, in]` with any strides; detached, or used under `no_grad`.
        mask: bool `[out / b_out, in / b_in]`, true where a block is live.
        block: Shape of a block.

    Returns:
        The same `weight`. Dead elements are +0.0, also where they were not finite.
    """
    tiles(weight, block).masked_fill_(~mask[:, None, :, None], 0)
    return weight


def fill_dead_(stored: Tensor, dead: Tensor, block: BlockShape, transposed: bool) -> None:
    """`clear_dead_` for the training step: takes the tensor as stored and a prepared mask.

    Args:
        stored: Weight, gradient or moment `[out, in]`, or `[in, out]` if `transposed`; or a stack of them.
        dead: bool `[out / b_out, 1, in / b_in, 1]`, true where a block is dead; `[experts, …]` for a stack.
        block: Shape of a block.
        transposed: Whether it is stored as `[in, out]` (Conv1D).
    """
    tiles(stored, block, transposed=transposed).masked_fill_(dead, 0)


def block_squares(blocks: Tensor) -> Tensor:
    """Sum of squares of each block of `tiles`: `[out / b_out, in / b_in]`, float32."""
    return blocks.float().square().sum(dim=(1, 3))
