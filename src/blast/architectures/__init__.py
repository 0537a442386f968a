"""Models by name: `names()`, `get(name)`, `build(name, …)`.

A family is one file of this folder. It lists its models in `ARCHITECTURES` and makes one with
`build(shape, …)`; dropping the file here is all it takes, as there is no list to extend. Family files import
torch inside `build` only, so that looking at names and shapes stays fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape
from blast.errors import BlastError, unknown_name

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SHAPES", "Architecture", "ModelShape", "build", "get", "legal_blocks", "names", "prunable"]

BLOCK_SIZES = (8, 16, 32, 64, 128, 256)


@cache
def _found() -> dict[str, Architecture]:
    """Every architecture of every family file in this folder."""
    found: dict[str, Architecture] = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for architecture in getattr(module, "ARCHITECTURES", ()):
            if architecture.name in found:
                raise BlastError(
                    f"the architecture '{architecture.name}' is defined by both {found[architecture.name].family}.py "
                    f"and {entry.name}.py; rename one of them."
                )
            found[architecture.name] = replace(architecture, family=entry.name)
    return found


def names() -> list[str]:
    """Names of all architectures, sorted."""
    return sorted(_found())


def get(name: str) -> Architecture:
    """The architecture called `name`.

    Raises:
        BlastError: if there is none; the message gives the nearest name.
    """
    if name not in _found():
        raise unknown_name("architecture", name, _found())
    return _found()[name]


def build(
    name: str,
    *,
    vocab_size: int | None = None,
    context: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> nn.Module:
    """A freshly initialised model; call `torch.manual_seed` first to fix its weights.

    What is left out is taken from the architecture's own shape. Dropout is 0 everywhere.

    Args:
        name: One of `names()`.
        vocab_size: Tokens of the tokenizer (language).
        context: Longest sequence in tokens (language).
        num_classes: Classes to tell apart (vision).
        image_size: Side of the square images in pixels (vision).
        channels: Channels of the images (vision).

    Raises:
        BlastError: for an unknown name, a size that is neither given nor fixed by the shape, or sizes that do not fit.
    """
    architecture = get(name)
    given = {
        "vocab": vocab_size,
        "context": context,
        "classes": num_classes,
        "image": image_size,
        "channels": channels,
    }
    shape = replace(architecture.shape, **{key: value for key, value in given.items() if value is not None})
    needed = ("vocab", "context") if architecture.modality == "language" else ("classes", "image", "channels")
    missing = [key for key in needed if getattr(shape, key) is None]
    if missing:
        raise BlastError(f"{name} has no size of its own for {', '.join(missing)}; give it from the dataset.")
    return importlib.import_module(f"{__name__}.{architecture.family}").build(shape)


def prunable(name: str) -> list[tuple[str, int, int]]:
    """The MLP matrices of one layer as `(role, out, in)`; every layer has the same."""
    return get(name).shape.mlp_matrices


def legal_blocks(name: str, sizes: tuple[int, ...] = BLOCK_SIZES) -> list[int]:
    """The sides of square blocks, among `sizes`, that divide every MLP matrix of the architecture."""
    sides = {side for _, rows, cols in prunable(name) for side in (rows, cols)}
    return [size for size in sizes if all(side % size == 0 for side in sides)]
