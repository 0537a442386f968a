"""Sets the dead blocks of weights, gradients and optimizer state to zero, in a model that runs masked-dense.

Gradients are cleared in every step. So the masks are kept on the devices in the form that one operation takes, and all
experts of a three-dimensional parameter are cleared together: a mixture has thousands of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blast_kernels.common.batched_copy import batched_copy_by_device
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, fill_dead_
from blast.block_sparse.sharding import clear_dead_anywhere_, is_sharded
from blast.model.target import Target
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.selection import BoolArray


class DeadBlocks:
    """The dead blocks of the matrices of a model.

    Args:
        mask_groups: All mask groups of the model, masked-dense.
    """

    def __init__(self, mask_groups: Sequence[MaskGroup]) -> None:
        self._mask_groups = mask_groups
        self._stacks: list[_Stack] | None = None
        self._masks: list[Tensor] = []
        self._dead: list[Tensor] = []
        self._stale = False

    def set(self, masks: Sequence[Tensor]) -> None:
        """Sets new masks, bool `[rows, cols]` on the CPU, true where a block is live; nothing is copied yet."""
        self._masks, self._stale = list(masks), True

    def clear_weights(self, held: Container[int] | None = None) -> None:
        """Sets the weights of dead blocks to zero; `held` are the `id` of some parameters, if not all are meant."""
        for stack, dead in self._with_masks():
            for target in stack.targets:
                if held is None or id(target.parameter) in held:
                    stack.clear(target.parameter, dead, target)

    def clear_gradients(self) -> None:
        """Sets the gradients of dead blocks to zero, where there are gradients."""
        for stack, dead in self._with_masks():
            for target in stack.targets:
                gradient = target.parameter.grad
                if gradient is not None:
                    stack.clear(gradient, dead, target)

    def clear_state(self, state_of: Callable[[nn.Parameter], Iterable[Tensor]]) -> None:
        """Sets the optimizer state of dead blocks to zero.

        Args:
            state_of: The state tensors of a parameter that have its shape.
        """
        for stack, dead in self._with_masks():
            for target in stack.targets:
                for value in state_of(target.parameter):
                    stack.clear(value, dead, target)

    def _with_masks(self) -> list[tuple[_Stack, Tensor]]:
        """Each stack with its mask `[rows, 1, cols, 1]` (`[experts, …]` for all experts), true where a block is dead.

        New masks overwrite the old ones in place, so that captured CUDA graphs read them.
        """
        if self._stacks is None:
            self._stacks = _stacks(self._mask_groups)
        in_place = bool(self._dead) and all(
            dead.device == stack.device for stack, dead in zip(self._stacks, self._dead, strict=True)
        )
        if self._stale or not in_place:
            uploads = [(stack.device, [stack.dead(self._masks)]) for stack in self._stacks]
            copies = [copied[0] for copied in batched_copy_by_device(uploads)]
            if in_place:
                torch._foreach_copy_(self._dead, copies)
            else:
                self._dead = copies
            self._stale = False
        return list(zip(self._stacks, self._dead, strict=True))


@dataclass(frozen=True)
class _Stack:
    """What is cleared in one operation for each target: one mask group, or all experts of a parameter.

    Attributes:
        groups: The mask groups; for experts one each, in the order of the parameter.
    """

    groups: list[MaskGroup]

    @property
    def targets(self) -> list[Target]:
        """The matrices of the mask group; for all experts the first of them."""
        return self.groups[0].matrices

    @property
    def block(self) -> BlockShape:
        return self.groups[0].block

    @property
    def device(self) -> torch.device:
        return self.groups[0].device

    def dead(self, masks: Sequence[Tensor]) -> BoolArray:
        """The mask of dead blocks on the CPU, from the masks of all mask groups."""
        dead = [~masks[group.index].numpy()[:, None, :, None] for group in self.groups]
        return dead[0] if self.targets[0].expert is None else np.stack(dead)

    def clear(self, tensor: Tensor, dead: Tensor, target: Target) -> None:
        """Clears a tensor of the shape of the target's parameter."""
        if is_sharded(tensor):
            clear_dead_anywhere_(tensor, ~dead[:, 0, :, 0], self.block, target.transposed)
        else:
            fill_dead_(tensor, dead, self.block, target.transposed)


def _stacks(mask_groups: Sequence[MaskGroup]) -> list[_Stack]:
    """Each mask group by itself, but all experts of a parameter together."""
    together: dict[object, list[MaskGroup]] = {}
    for group in mask_groups:
        target = group.matrices[0]
        together.setdefault((group.index,) if target.expert is None else id(target.parameter), []).append(group)
    return [_Stack(groups) for groups in together.values()]
