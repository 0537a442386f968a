"""Registers checkpoints with transformers once it is imported, before or after `blast`; imports no torch itself."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The module that maps model types to configs.
AWAITED = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Registers now if transformers is imported, or else as soon as it maps model types to configs."""
    if AWAITED in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the awaited module as Python does, and registers after it was executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != AWAITED:
            return None
        sys.meta_path.remove(self)
        found = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
        spec = next((spec for spec in found if spec is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = exec_module
        return spec


def _register() -> None:
    try:
        from blast.checkpoint.transformers_auto import register

        register()
    except Exception as error:  # transformers itself must stay usable
        warnings.warn(
            f"this version of transformers cannot open blast checkpoints by from_pretrained ({error}); use blast.load.",
            stacklevel=2,
        )
