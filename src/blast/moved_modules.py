"""Old import paths of the library: programs that use one go on, with a warning that names the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Modules that version 0.2 moved, by their old name.
MOVED = {
    "blast.layers.block_csr": "blast.block_sparse.csr",
    "blast.layers.checkpoint": "blast.checkpoint.checkpoint",
    "blast.layers.convert": "blast.model.convert",
    "blast.layers.fuse": "blast.model.fuse",
    "blast.layers.manifest": "blast.checkpoint.manifest",
    "blast.layers.memory": "blast.model.memory",
    "blast.layers.recognise": "blast.model.discovery",
    "blast.layers.target": "blast.model.target",
    "blast.sparsity.blocks": "blast.block_sparse.blocks",
    "blast.sparsity.mask": "blast.sparsity.selection",
    "blast.sparsity.ranks": "blast.distributed",
    "blast.sparsity.shards": "blast.block_sparse.sharding",
    "blast.sparsity.units": "blast.sparsity.mask_groups",
    "blast.training.graph_capture": "blast.training.cuda_graphs",
    "blast.training.guard": "blast.training.divergence",
    "blast.training.processes": "blast.training.launch",
    "blast.training.resume": "blast.training.checkpoint",
}


class _Finder(MetaPathFinder, Loader):
    """Gives the moved module itself for its old name, so that classes and settings exist once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Import machinery writes the spec into what it gets, so it gets a module that is thrown away.
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = MOVED[old]
        warnings.warn(f"{old} is now {new}; import that instead.", FutureWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def install() -> None:
    """Makes the old import paths work; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
