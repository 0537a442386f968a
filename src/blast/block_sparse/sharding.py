"""Matrices sharded over processes (`fully_shard`): what each process computes on its local shard.

A sharded parameter, its gradient and its moments are DTensors. A process holds a rectangle of the whole `[out, in]`
matrix. The edges of the rectangle can cut through blocks. Nothing here gathers a matrix.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from blast.block_sparse.blocks import BlockShape, block_grid, block_squares, clear_dead_, expand_mask, tiles
from blast.errors import BlastError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# Attribute of a model that `blast.load(…, tensor_parallel=…)` gave this process a part of: its number, and how many.
PART_OF = "_blast_part_of"


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes (a DTensor)."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of a model that `fully_shard` was called on."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(module, "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


@dataclass(frozen=True)
class LocalShard:
    """The part of a sharded matrix that this process holds.

    Attributes:
        tensor: `[rows, cols]`, a view of its memory; empty if there are more processes than rows.
        row: Its first row in the whole matrix.
        col: Its first column in the whole matrix.
        groups: The process groups that the matrix is sharded over.
    """

    tensor: Tensor
    row: int
    col: int
    groups: tuple[dist.ProcessGroup, ...]

    @classmethod
    def of(cls, matrix: Tensor) -> LocalShard:
        """The local shard of a DTensor `[out, in]`.

        Raises:
            BlastError: if a placement is neither `Replicate` nor `Shard`.
        """
        from torch.distributed.tensor import DTensor, Replicate, Shard

        assert isinstance(matrix, DTensor)
        mesh = matrix.device_mesh
        shape, first = list(matrix.shape), [0, 0]
        groups = []
        for axis, placement in enumerate(matrix.placements):
            if type(placement) is Replicate:
                continue
            if type(placement) is not Shard:
                raise BlastError(
                    f"a matrix of {matrix.shape[0]}x{matrix.shape[1]} has the placement {placement}, which cannot "
                    "be cut into blocks; shard it with fully_shard alone."
                )
            side = placement.dim
            length = -(-shape[side] // mesh.size(axis))
            start = min(length * mesh.get_local_rank(axis), shape[side])
            first[side] += start
            shape[side] = min(length, shape[side] - start)
            groups.append(mesh.get_group(axis))
        return cls(matrix.to_local().detach(), first[0], first[1], tuple(groups))

    def transposed(self, transposed: bool) -> LocalShard:
        """This shard as one of the transposed matrix; a view, where the transpose of a DTensor can be a copy."""
        return LocalShard(self.tensor.t(), self.col, self.row, self.groups) if transposed else self

    def padding(self, block: BlockShape) -> tuple[int, int, int, int]:
        """Elements that complete the cut blocks: left, right, above, below (the order of `F.pad`)."""
        rows, cols = self.tensor.shape
        return (
            self.col % block.cols,
            -(self.col + cols) % block.cols,
            self.row % block.rows,
            -(self.row + rows) % block.rows,
        )

    def blocks(self, block: BlockShape) -> tuple[slice, slice]:
        """Block rows and block columns that the shard has elements of."""
        rows, cols = self.tensor.shape
        return (
            slice(self.row // block.rows, -(-(self.row + rows) // block.rows)),
            slice(self.col // block.cols, -(-(self.col + cols) // block.cols)),
        )


@torch.no_grad()
def matrix_squares(stored: Tensor, block: BlockShape, transposed: bool = False) -> Tensor:
    """Sum of squares of each block of a matrix. For a sharded one all processes must call it.

    Args:
        stored: `[out, in]`, or `[in, out]` if `transposed`.
        block: Shape of a block.
        transposed: Whether it is stored as `[in, out]` (Conv1D).

    Returns:
        Sums `[out / b_out, in / b_in]` over the whole matrix, float32.
    """
    if not is_sharded(stored):
        return block_squares(tiles(stored, block, transposed=transposed))
    shard = LocalShard.of(stored).transposed(transposed)
    shape = stored.shape[::-1] if transposed else stored.shape
    squares = torch.zeros(block_grid(shape, block), device=shard.tensor.device)
    if shard.tensor.numel():
        missing = shard.padding(block)
        whole = F.pad(shard.tensor, missing) if any(missing) else shard.tensor
        squares[shard.blocks(block)] = block_squares(tiles(whole, block))
    for group in shard.groups:
        dist.all_reduce(squares, group=group)
    return squares


@torch.no_grad()
def clear_dead_anywhere_(stored: Tensor, mask: Tensor, block: BlockShape, transposed: bool) -> None:
    """Sets the dead blocks of a matrix to zero, in place; for a sharded one in the local shard.

    Args:
        stored: Weight, gradient or moment as its module stores it.
        mask: bool `[out / b_out, in / b_in]` of the whole matrix, true where a block is live.
        block: Shape of a block.
        transposed: Whether it is stored as `[in, out]` (Conv1D).
    """
    if not is_sharded(stored):
        clear_dead_(stored.detach().t() if transposed else stored.detach(), mask, block)
        return
    shard = LocalShard.of(stored).transposed(transposed)
    if not shard.tensor.numel():
        return
    live = mask[shard.blocks(block)]
    left, _, above, _ = missing = shard.padding(block)
    if not any(missing):
        clear_dead_(shard.tensor, live, block)
        return
    rows, cols = shard.tensor.shape
    live = expand_mask(live, block)[above : above + rows, left : left + cols]
    shard.tensor.masked_fill_(~live, 0)


def only_a_part(rank: int, size: int) -> BlastError:
    """The error for a part of a model where a whole one is needed."""
    return BlastError(
        f"the model is the part of process {rank} of {size} (tensor_parallel), but whole matrices are needed; "
        "load the checkpoint without tensor_parallel."
    )


def refuse_sharded(model: nn.Module) -> None:
    """Raises if a model is sharded, or a part of one, because the caller needs whole matrices.

    Raises:
        BlastError: the message says how to get an unsharded model.
    """
    for module in model.modules():
        if PART_OF in module.__dict__:
            raise only_a_part(*module.__dict__[PART_OF])
    if sharded_modules(model) or any(is_sharded(parameter) for parameter in model.parameters()):
        raise BlastError(
            "the model is sharded over processes (fully_shard), but whole matrices are needed; get its state with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)), load that into an unsharded model, and use this one."
        )
