"""Warm regrown state: blocks that grew a few steps ago train as if Adam had started when they grew.

`adam_restart` has the mathematics, `regrown_blocks` the counts of steps since a block grew. The counts stay on the
device, so that no step waits for the GPU, and a captured CUDA graph counts on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from blast_kernels.common.batched_copy import batched_copy_by_device
from torch import Tensor

from blast.block_sparse.sharding import is_sharded
from blast.errors import BlastError
from blast.sparsity.adam_restart import check_adam
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.optimizers import Optimizers, held_by
from blast.sparsity.regrown_blocks import CountedBatch, CountedMatrix


class RegrownState:
    """Corrects the moments of blocks that grew, in the first steps after their growth only.

    Args:
        mask_groups: All mask groups of the model.
        optimizers: The optimizers of its matrices.
        config: `regrown_warmup` and `grow_score` are used.

    Raises:
        BlastError: if an optimizer of a matrix is not Adam, or a matrix is an expert or sharded.
    """

    def __init__(self, mask_groups: Sequence[MaskGroup], optimizers: Optimizers, config: SparsifyConfig) -> None:
        self._warmup = config.regrown_warmup
        # The count of a block whose first steps are over.
        self._old = float(config.regrown_warmup + 1)
        # A block without the gradient of the step in which it grows begins in the next one.
        self._born = 0 if config.grows_by_gradient else -1
        places = [(group, place) for group in mask_groups for place in range(group.cost)]
        self._matrices = [CountedMatrix(group, place, self._old) for group, place in places]
        _check_matrices(self._matrices)
        ids = {id(matrix.parameter) for matrix in self._matrices}
        holders = [optimizer for optimizer in optimizers.unwrapped if ids & held_by(optimizer)]
        for optimizer in holders:
            check_adam(optimizer)
        # For each optimizer its coming steps in which there are blocks to correct.
        self._left = dict.fromkeys(map(id, holders), 0)
        # By optimizer and number of its parameter group.
        self._batches: dict[tuple[int, int], list[CountedBatch]] = {}

    def grow(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Begins the counts of blocks that grow.

        Args:
            before: The masks before a mask update, bool `[rows, cols]` on the CPU, one for each mask group.
            after: The masks after it.
        """
        self._end_counts()
        self._batches = {}
        grown = [(new & ~old).numpy() for old, new in zip(before, after, strict=True)]
        if any(mask.any() for mask in grown):
            uploads = [(matrix.own.device, [grown[matrix.group.index]]) for matrix in self._matrices]
            for matrix, (mask,) in zip(self._matrices, batched_copy_by_device(uploads), strict=True):
                matrix.own.masked_fill_(mask, self._born)
            self._left = dict.fromkeys(self._left, self._warmup - self._born)

    @torch.no_grad()
    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Corrects the moments that the coming step of an optimizer uses; call it just before that step.

        Raises:
            BlastError: if a gradient scaler may let a fused optimizer skip the step.
        """
        left = self._left.get(id(optimizer))
        if left is None:
            return
        if getattr(optimizer, "found_inf", None) is not None:
            raise BlastError(
                "regrown_state 'warm' counts optimizer steps, but under a gradient scaler a fused optimizer may skip "
                "one unseen; create the optimizer with fused=False, or train in bfloat16."
            )
        if left:
            self._left[id(optimizer)] = left - 1
            for number, group in enumerate(optimizer.param_groups):
                for batch in self._batches_of(optimizer, number):
                    batch.correct(optimizer, group, self._warmup)

    def optimizer_replayed(self) -> None:
        """Notes an optimizer step that a CUDA graph replayed, together with its corrections."""
        self._left = {key: max(0, left - 1) for key, left in self._left.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The count of each block by matrix name, int32 `[rows, cols]` on the CPU."""
        self._end_counts()
        return {matrix.name: matrix.own.to("cpu", torch.int32) for matrix in self._matrices}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads the counts of a saved state."""
        for matrix in self._matrices:
            matrix.own.copy_(state[matrix.name])
        youngest = min(int(state[matrix.name].min()) for matrix in self._matrices)
        self._left = dict.fromkeys(self._left, max(0, self._warmup - youngest))

    def _end_counts(self) -> None:
        """Ends all counts once their steps are over; a matrix that had no gradient may have missed some."""
        if not any(self._left.values()):
            for matrix in self._matrices:
                matrix.own.fill_(self._old)

    def _batches_of(self, optimizer: torch.optim.Optimizer, number: int) -> list[CountedBatch]:
        """The matrices of one parameter group of an optimizer, by device."""
        key = id(optimizer), number
        if key not in self._batches or not all(batch.valid for batch in self._batches[key]):
            held = {id(parameter) for parameter in optimizer.param_groups[number]["params"]}
            by_device: dict[torch.device, list[CountedMatrix]] = {}
            for matrix in self._matrices:
                if id(matrix.parameter) in held:
                    by_device.setdefault(matrix.parameter.device, []).append(matrix)
            self._batches[key] = [CountedBatch(matrices, self._old) for matrices in by_device.values()]
        return self._batches[key]


def _check_matrices(matrices: Sequence[CountedMatrix]) -> None:
    for matrix in matrices:
        if matrix.target.expert is not None:
            raise BlastError(
                f"regrown_state 'warm' cannot train experts, such as '{matrix.name}'; set regrown_state to 'zero'."
            )
        if is_sharded(matrix.parameter):
            raise BlastError(
                "regrown_state 'warm' cannot train a model in fully_shard; set regrown_state to 'zero', or pass the "
                "model itself and call blast.average_gradients(model)."
            )
