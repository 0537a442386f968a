"""Datasets by name: `names()`, `get(name)`.

A dataset is one file of this folder that defines

- `MODALITY` (`"language"` or `"vision"`), `LICENCE`, `DESCRIPTION`, `SOURCES` (where the data come from, in the
  order tried), `EVALUATION` (names of lm-eval tasks; empty for images);
- `fetch(cache, progress) -> dict`: brings the raw files into the cache, or raises one sentence;
- `prepare(cache, settings) -> dict`: turns them into what training reads (tokens, evaluation documents) and returns
  the facts: digests and counts;
- `load(cache, settings)`: opens what was prepared as `LanguageData` or `VisionData`.

All three may be called again and by several processes at once. Nothing heavy is imported before one is called.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from blast.errors import unknown_name

__all__ = ["get", "names"]


@cache
def _found() -> dict[str, ModuleType]:
    """Every dataset file of this folder: those that state a modality."""
    modules = {
        entry.name: importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "MODALITY")}


def names() -> list[str]:
    """Names of all datasets, sorted."""
    return sorted(_found())


def get(name: str) -> ModuleType:
    """The module of the dataset called `name`.

    Raises:
        BlastError: if there is none; the message gives the nearest name.
    """
    if name not in _found():
        raise unknown_name("dataset", name, _found())
    return _found()[name]
