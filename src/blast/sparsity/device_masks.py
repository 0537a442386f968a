"""Copies of the masks on the devices of the matrices, uploaded in one transfer when they are first used."""

from __future__ import annotations

from collections.abc import Sequence

from blast_kernels.common.batched_copy import batched_copy_by_device
from torch import Tensor

from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.selection import BoolArray


class DeviceMasks:
    """Copies of the masks of a model on the devices of its matrices.

    Args:
        mask_groups: All mask groups of the model.
    """

    def __init__(self, mask_groups: Sequence[MaskGroup]) -> None:
        self._mask_groups = mask_groups
        self._masks: list[Tensor] = []
        self._live: list[Tensor] = []

    def set(self, masks: Sequence[Tensor]) -> None:
        """Sets new masks, bool `[rows, cols]` on the CPU; nothing is copied yet."""
        self._masks = list(masks)
        self._live = []

    def live(self) -> list[Tensor]:
        """The masks `[rows, cols]`, true where a block is live; copied again if the model was moved."""
        if not self._on_device(self._live):
            self._live = self._copies([mask.numpy() for mask in self._masks])
        return self._live

    def _on_device(self, copies: list[Tensor]) -> bool:
        return bool(copies) and all(c.device == g.device for c, g in zip(copies, self._mask_groups, strict=True))

    def _copies(self, arrays: Sequence[BoolArray]) -> list[Tensor]:
        uploads = [(group.device, [array]) for group, array in zip(self._mask_groups, arrays, strict=True)]
        return [copy for (copy,) in batched_copy_by_device(uploads)]
