"""Making a model block-sparse while it trains: `Sparsifier(model, optimizer, SparsifyConfig(...))`.

The published text says that the method "iteratively sparsifies weight matrices into a block sparsity pattern". What is
built here is our reading of it: Zhu & Gupta's cubic schedule with RigL's drop and grow, on blocks. Each choice is a
switch of `SparsifyConfig`. Names load on first use, so that reading a config does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blast.sparsity.blocks import BlockShape, as_block, keep_count
    from blast.sparsity.config import METHODS, SparsifyConfig
    from blast.sparsity.one_shot import apply_masks_, one_shot_masks
    from blast.sparsity.sparsifier import Sparsifier

_HOMES = {
    "BlockShape": "blocks",
    "as_block": "blocks",
    "keep_count": "blocks",
    "METHODS": "config",
    "SparsifyConfig": "config",
    "apply_masks_": "one_shot",
    "one_shot_masks": "one_shot",
    "Sparsifier": "sparsifier",
}

__all__ = [
    "METHODS",
    "BlockShape",
    "Sparsifier",
    "SparsifyConfig",
    "apply_masks_",
    "as_block",
    "keep_count",
    "one_shot_masks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
