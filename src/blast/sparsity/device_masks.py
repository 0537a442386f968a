"""The masks where the matrices are: copies of those on the host, made in one transfer when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from blast_kernels.common.batched_copy import batched_copy_by_device
from torch import Tensor

from blast.sparsity.mask_groups import Unit


class DeviceMasks:
    """Copies of the masks of a model's units on the devices of these.

    Args:
        units: All units of the model.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units
        self._masks: list[Tensor] = []
        self._live: list[Tensor] = []
        self._dead: list[Tensor] = []
        self._stale = False

    def take(self, masks: Sequence[Tensor]) -> None:
        """Takes new masks, bool `[rows, cols]` on the host; nothing is copied yet."""
        self._masks = list(masks)
        self._live, self._stale = [], True

    def live(self) -> list[Tensor]:
        """The masks `[rows, cols]`, true where a block is live; moved along if the model was moved."""
        if not self._in_place(self._live):
            self._live = self._copies([mask.numpy() for mask in self._masks])
        return self._live

    def dead(self) -> list[Tensor]:
        """Masks `[rows, 1, cols, 1]`, true where a block is dead, as `fill_dead_` takes them.

        New masks take the place of the old ones, so that CUDA graphs read them where they have read these.
        """
        placed = self._in_place(self._dead)
        if self._stale or not placed:
            copies = self._copies([~mask.numpy()[:, None, :, None] for mask in self._masks])
            if placed:
                torch._foreach_copy_(self._dead, copies)
            else:
                self._dead = copies
            self._stale = False
        return self._dead

    def _in_place(self, copies: list[Tensor]) -> bool:
        return bool(copies) and all(c.device == unit.device for c, unit in zip(copies, self._units, strict=True))

    def _copies(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        groups = [(unit.device, [array]) for unit, array in zip(self._units, arrays, strict=True)]
        return [copies[0] for copies in batched_copy_by_device(groups)]
