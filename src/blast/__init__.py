"""BLaST: block-sparse transformers.

Sparsify a model in your own training loop, in five lines:

    import blast
    sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(sparsity=0.9, block=32, steps=1000))
    sparsifier.step()                          # in the loop, between backward() and optimizer.step()
    blast.to_sparse(model, sparsifier.masks)   # after the loop: only live blocks are held, and computed with
    blast.save(model, "my-sparse-model")       # blast.load("my-sparse-model") gives it back

Names are imported when they are first used, so that `import blast` itself is quick and does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blast.errors import BlastError
    from blast.layers.block_csr import BlockCSR
    from blast.layers.block_linear import BlockLinear
    from blast.layers.checkpoint import load, save
    from blast.layers.convert import masks_of, to_dense, to_sparse
    from blast.layers.fuse import fuse, quantization_errors, unfuse
    from blast.layers.memory import model_bytes
    from blast.layers.recognise import find_mlps
    from blast.sparsity.config import METHODS, SparsifyConfig
    from blast.sparsity.ranks import average_gradients
    from blast.sparsity.sparsifier import Sparsifier

    __version__: str

_HOME = {
    "BlastError": "blast.errors",
    "BlockCSR": "blast.layers.block_csr",
    "BlockLinear": "blast.layers.block_linear",
    "METHODS": "blast.sparsity.config",
    "Sparsifier": "blast.sparsity.sparsifier",
    "SparsifyConfig": "blast.sparsity.config",
    "average_gradients": "blast.sparsity.ranks",
    "find_mlps": "blast.layers.recognise",
    "fuse": "blast.layers.fuse",
    "load": "blast.layers.checkpoint",
    "masks_of": "blast.layers.convert",
    "model_bytes": "blast.layers.memory",
    "quantization_errors": "blast.layers.fuse",
    "save": "blast.layers.checkpoint",
    "to_dense": "blast.layers.convert",
    "to_sparse": "blast.layers.convert",
    "unfuse": "blast.layers.fuse",
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
    "save",
    "load",
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
