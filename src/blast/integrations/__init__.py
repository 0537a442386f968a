"""Pruning inside the training loops of other libraries: the Trainer of transformers, and accelerate.

Names are imported at their first use, because each needs its library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blast.integrations.accelerate_checkpoint import register_sparsifier
    from blast.integrations.trainer_callback import SparsifyCallback

_HOME = {
    "SparsifyCallback": "blast.integrations.trainer_callback",
    "register_sparsifier": "blast.integrations.accelerate_checkpoint",
}

__all__ = ["SparsifyCallback", "register_sparsifier"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'blast.integrations' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
