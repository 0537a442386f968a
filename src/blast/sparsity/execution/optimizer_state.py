"""Checks whether an optimizer can train live blocks only."""

from __future__ import annotations

from collections.abc import Sequence

from blast.errors import BlastError
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.optimizers import Optimizers, check_state

# The update of one element depends on other elements, so that training live blocks only would change the result.
MIXING = ("adafactor", "galore", "muon", "shampoo", "soap", "sparseadam")
REMEDY = 'use AdamW, SGD or another optimizer that treats each element alone, or execution="masked"'


def check_elementwise(optimizers: Optimizers, mask_groups: Sequence[MaskGroup]) -> None:
    """Checks that the optimizers can train live blocks only.

    Args:
        optimizers: The optimizers.
        mask_groups: Mask groups whose parameters will be replaced; empty to check the kinds alone.

    Raises:
        BlastError: if an update mixes elements, or a state value is neither one number nor a tensor of the parameter's
            shape.
    """
    for name in optimizers.names:
        if any(kind in name.lower() for kind in MIXING):
            raise BlastError(f"{name} cannot train live blocks only, because its update mixes elements; {REMEDY}.")
    check_state(optimizers, mask_groups, sparse=True)
