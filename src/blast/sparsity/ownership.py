"""Which sparsifier prunes a matrix: the newest, as when a cell of a notebook is run again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from blast.errors import BlastError
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.optimizers import Handle

# The ownership of every sparsifier that no newer one has replaced.
_IN_USE: weakref.WeakSet[Ownership] = weakref.WeakSet()


class Ownership:
    """The matrices of one sparsifier, which are taken from older sparsifiers.

    Args:
        mask_groups: Its mask groups.
        hooks: Its hooks in the optimizers; a newer sparsifier of a matrix removes them.
    """

    def __init__(self, mask_groups: Sequence[MaskGroup], hooks: Sequence[Handle]) -> None:
        self._mask_groups, self._hooks = mask_groups, hooks
        for other in list(_IN_USE):
            if other._matrices & self._matrices:
                for hook in other._hooks:
                    hook.remove()
                _IN_USE.discard(other)
        _IN_USE.add(self)

    @property
    def _matrices(self) -> set[tuple[int, str]]:
        # Read anew each time, because a change of the execution replaces modules.
        return {(id(target.module), target.name) for group in self._mask_groups for target in group.targets}

    def check(self) -> None:
        """Checks that the sparsifier is in use.

        Raises:
            BlastError: if a newer one prunes the same matrices.
        """
        if self not in _IN_USE:
            raise BlastError(
                "a newer Sparsifier prunes the same matrices, so this one is no longer in use; use the newer one."
            )
