"""The optimizer steps since each block grew, on the devices of the matrices, and the correction of young blocks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from blast_kernels.common.batched_copy import batched_copy
from torch import Tensor, nn

from blast.block_sparse.blocks import tiles
from blast.layers.block_linear import BlockLinear
from blast.model.target import Target
from blast.sparsity.adam_restart import gradient_of, moment_factors
from blast.sparsity.mask_groups import MaskGroup, parameter_of, sparse_layer


class CountedMatrix:
    """One matrix, and the optimizer steps of each of its blocks since it grew.

    Args:
        group: Its mask group.
        place: Its place among the matrices of the group.
        old: The count of a block that is not corrected.

    Attributes:
        group: Its mask group.
        name: Its name.
        own: The counts, float32 `[rows, cols]`. Nobody reads that of a dead block.
    """

    def __init__(self, group: MaskGroup, place: int, old: float) -> None:
        self.group, self._place = group, place
        self.name = self.target.name
        self.own = torch.full(group.grid, old, device=self.parameter.device)

    @property
    def target(self) -> Target:
        """Its target, which a change of the execution replaces."""
        return self.group.matrices[self._place]

    @property
    def parameter(self) -> nn.Parameter:
        """Its parameter: the weight, or in the sparse state the live blocks."""
        return parameter_of(self.target)

    @property
    def in_blocks(self) -> bool:
        """Whether its parameter holds live blocks only."""
        return isinstance(self.target.module, BlockLinear)

    def counted(self) -> np.ndarray[Any, Any]:
        """Row-major positions of the blocks that its parameter holds, int64."""
        if self.in_blocks:
            return sparse_layer(self.target).index.index.cpu_index.flat_indices(self.group.grid[1])
        return np.arange(self.group.blocks)

    def blocks(self, tensor: Tensor) -> Tensor:
        """A view of a tensor of the parameter's shape: `[nnz, b_out, b_in]`, or `[rows, b_out, cols, b_in]`."""
        return tensor if self.in_blocks else tiles(tensor, self.group.block, self.name, self.target.transposed)

    def factor(self, by_block: Tensor) -> Tensor:
        """One factor for each block that the parameter holds, in a shape that multiplies `blocks`."""
        return by_block[:, None, None] if self.in_blocks else by_block.view(self.group.grid)[:, None, :, None]


class CountedBatch:
    """Matrices of one parameter group of Adam on one device: the factors of all their blocks are computed together.

    Args:
        matrices: The matrices. Their counts become views of one tensor.
        old: The count of a block that is not corrected.
    """

    def __init__(self, matrices: Sequence[CountedMatrix], old: float) -> None:
        self._matrices, self._old = matrices, old
        # Weak, because a mask update replaces the parameters of the sparse state.
        self._parameters = [weakref.ref(matrix.parameter) for matrix in matrices]
        self._device = matrices[0].parameter.device
        self._own = torch.cat([matrix.own.to(self._device).flatten() for matrix in matrices])
        sizes = [matrix.group.blocks for matrix in matrices]
        for matrix, own in zip(matrices, self._own.split(sizes), strict=True):
            matrix.own = own.view(matrix.group.grid)
        # For all blocks that the parameters hold: their positions in the counts, and the number of their matrix.
        held = [matrix.counted() for matrix in matrices]
        starts = np.cumsum([0, *sizes[:-1]])
        self._sizes = [len(positions) for positions in held]
        positions = np.concatenate([start + each for start, each in zip(starts, held, strict=True)])
        self._positions, self._owners = batched_copy(
            [positions, np.repeat(np.arange(len(matrices)), self._sizes)], self._device
        )

    @property
    def valid(self) -> bool:
        """Whether the matrices still have the parameters of this batch, on its device."""
        return all(
            known() is matrix.parameter and matrix.parameter.device == self._device
            for known, matrix in zip(self._parameters, self._matrices, strict=True)
        )

    def correct(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], warmup: int) -> None:
        """Counts the coming optimizer step, and changes the moments so that it is that of a fresh start.

        Args:
            optimizer: Adam, before its step.
            group: Its parameter group with these matrices.
            warmup: Steps over which the update rises, and after which a block is not corrected.
        """
        states = [optimizer.state.get(matrix.parameter) for matrix in self._matrices]
        for matrix, state in zip(self._matrices, states, strict=True):
            if matrix.parameter.grad is None:
                matrix.own.sub_(1)  # Adam leaves it out of this step
            elif not state:
                # Adam itself starts with this step; only blocks without their gradient yet start after it.
                matrix.own.masked_fill_(matrix.own >= 0, self._old)
        own = self._own.add_(1)[self._positions].double()
        young = own <= warmup
        # A block without its gradient yet has a count of 0; its moments are zero, and any factor will do.
        own.clamp_min_(1)
        step = self._steps(states)[self._owners].double() + 1
        beta1, beta2 = group["betas"]
        factors = [*moment_factors(beta1, own, step, warmup), *moment_factors(beta2, own, step)]
        unchanged = [1.0, 0.0, 1.0, 0.0]
        split = [
            torch.where(young, factor, other).split(self._sizes)
            for factor, other in zip(factors, unchanged, strict=True)
        ]
        for number, (matrix, state) in enumerate(zip(self._matrices, states, strict=True)):
            gradient = gradient_of(matrix.parameter, group)
            if gradient is not None and state:
                _correct(matrix, state, gradient, [parts[number] for parts in split])

    def _steps(self, states: Sequence[dict[str, Any] | None]) -> Tensor:
        """The step of each matrix in Adam, `[matrices]`."""
        steps = [state["step"] if state else torch.zeros(()) for state in states]
        if len({step.device for step in steps}) > 1:
            steps = [step.to(self._device, non_blocking=True) for step in steps]
        return torch.stack(steps).to(self._device, non_blocking=True)


def _correct(matrix: CountedMatrix, state: dict[str, Any], gradient: Tensor, factors: Sequence[Tensor]) -> None:
    """Changes both moments of a matrix; `factors` are `keep` and `add` of the first and the second, by block."""
    first, second = matrix.blocks(state["exp_avg"]), matrix.blocks(state["exp_avg_sq"])
    gradient = matrix.blocks(gradient)
    dtype = torch.promote_types(first.dtype, torch.float32)
    keep1, add1, keep2, add2 = (matrix.factor(factor.to(dtype)) for factor in factors)
    first.mul_(keep1).addcmul_(gradient, add1)
    second.mul_(keep2).addcmul_(gradient, gradient * add2)
