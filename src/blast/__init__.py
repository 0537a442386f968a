"""BLaST: block-sparse transformers.

Sparsify a model in your own training loop, in five lines:

    import blast
    sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(sparsity=0.9, block=32, steps=1000))
    sparsifier.step()                          # in the loop, between backward() and optimizer.step()
    blast.to_sparse(model, sparsifier.masks)   # after the loop: the model stores and computes live blocks only
    blast.save(model, "my-sparse-model")       # load it with blast.load("my-sparse-model")

Names are imported at their first use, so `import blast` is fast and does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from blast.checkpoint.import_hook import install as _install_import_hook
from blast.moved_modules import install as _install_old_paths

if TYPE_CHECKING:
    from blast.block_sparse.csr import BlockCSR
    from blast.checkpoint.checkpoint import load, save
    from blast.checkpoint.export import export_dense
    from blast.distributed import average_gradients
    from blast.errors import BlastError
    from blast.generation.decode import fast_decode
    from blast.layers.block_linear import BlockLinear
    from blast.model.convert import masks_of, to_dense, to_sparse
    from blast.model.discovery import find_mlps
    from blast.model.fuse import fuse, quantization_errors, unfuse
    from blast.model.memory import model_bytes
    from blast.sparsity.config import METHODS, SparsifyConfig
    from blast.sparsity.sparsifier import Sparsifier

    __version__: str

_HOME = {
    "BlastError": "blast.errors",
    "BlockCSR": "blast.block_sparse.csr",
    "BlockLinear": "blast.layers.block_linear",
    "METHODS": "blast.sparsity.config",
    "Sparsifier": "blast.sparsity.sparsifier",
    "SparsifyConfig": "blast.sparsity.config",
    "average_gradients": "blast.distributed",
    "export_dense": "blast.checkpoint.export",
    "fast_decode": "blast.generation.decode",
    "find_mlps": "blast.model.discovery",
    "fuse": "blast.model.fuse",
    "load": "blast.checkpoint.checkpoint",
    "masks_of": "blast.model.convert",
    "model_bytes": "blast.model.memory",
    "quantization_errors": "blast.model.fuse",
    "save": "blast.checkpoint.checkpoint",
    "to_dense": "blast.model.convert",
    "to_sparse": "blast.model.convert",
    "unfuse": "blast.model.fuse",
}

__all__ = [  # noqa: RUF022  (in the order of use)
    "Sparsifier",
    "SparsifyConfig",
    "METHODS",
    "average_gradients",
    "to_sparse",
    "to_dense",
    "masks_of",
    "fuse",
    "unfuse",
    "quantization_errors",
    "fast_decode",
    "save",
    "load",
    "export_dense",
    "find_mlps",
    "model_bytes",
    "BlockCSR",
    "BlockLinear",
    "BlastError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'blast' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("blast-suite")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


# With blast imported, `from_pretrained` of transformers opens what `blast.save` wrote.
_install_import_hook()
_install_old_paths()
