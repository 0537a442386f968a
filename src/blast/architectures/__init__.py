"""Models by name: `names()`, `get(name)`, `build(name, …)`, and `load(name, …)` with published weights.

A family is one file of this folder. It lists its models in `ARCHITECTURES` and makes one with
`build(shape, …)`; dropping the file here is all it takes, as there is no list to extend. Family files import
torch inside `build` only, so that looking at names and shapes stays fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.architectures.architecture import Architecture, Build
from blast.architectures.shapes import SHAPES, ModelShape
from blast.download.cache import build_once, cache_root
from blast.download.sources import Progress
from blast.errors import BlastError, unknown_name

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SHAPES",
    "Architecture",
    "ModelShape",
    "build",
    "fetch",
    "get",
    "legal_blocks",
    "load",
    "names",
    "prunable",
    "tokenizer_folder",
]

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
    ffn: int | None = None,
) -> nn.Module:
    """A freshly initialised model; call `torch.manual_seed` first to fix its weights.

    What is left out is taken from the architecture's own shape. Dropout is 0 everywhere.

    Args:
        name: One of `names()`.
        vocab_size: Tokens of the tokenizer (language).
        context: Longest sequence in tokens (language).
        num_classes: Classes to tell apart (vision; a language model becomes a classifier of sequences).
        image_size: Side of the square images in pixels (vision).
        channels: Channels of the images (vision).
        ffn: Inner width of the MLPs.

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
        "ffn": ffn,
    }
    shape = replace(architecture.shape, **{key: value for key, value in given.items() if value is not None})
    needed = ("classes", "image", "channels") if architecture.modality == "vision" else ("vocab", "context")
    missing = [key for key in needed if getattr(shape, key) is None]
    if missing:
        raise BlastError(f"{name} has no size of its own for {', '.join(missing)}; give it from the dataset.")
    return _builder(architecture)(shape)


def _builder(architecture: Architecture) -> Build:
    return importlib.import_module(f"{__name__}.{architecture.family}").build


def _published(name: str) -> Architecture:
    architecture = get(name)
    if architecture.weights is None:
        with_weights = ", ".join(other for other in names() if get(other).weights)
        raise BlastError(f"{name} has no published weights; train it from scratch, or choose one of: {with_weights}.")
    return architecture


def fetch(name: str, cache: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Brings the published weights of an architecture into the cache.

    Returns:
        Facts: digest, folder, bytes, source and licence.

    Raises:
        BlastError: if it has none, or no source had them; one sentence with each source's reason.
    """
    weights = _published(name).weights
    if progress:
        progress(f"{name}: weights from {weights.label}, licence {weights.licence}")
    facts = weights.fetch(name, cache or cache_root(), progress)
    return facts | {"source": weights.label, "licence": weights.licence}


def load(
    name: str,
    cache: Path | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """An architecture with its published weights, in float32 and without dropout; fetched unless the cache has them.

    Args:
        name: One of `names()` that has weights.
        cache: Cache folder; by default the user's.
        num_classes: Classes to tell apart, if others than the published ones: the head then starts fresh, so call
            `torch.manual_seed` first. Makes a language model a classifier of sequences.
        image_size: Side of the images in pixels, if another than the published one (vision).
        channels: Channels of the images (vision).
        progress: Called with one line of text now and then.

    Raises:
        BlastError: if there are no weights, no source had them, or the sizes do not fit.
    """
    architecture = _published(name)
    fetch(name, cache, progress)
    sizes = {"classes": num_classes, "image": image_size, "channels": channels}
    return architecture.weights.open(name, architecture.shape, _builder(architecture), cache or cache_root(), **sizes)


def tokenizer_folder(name: str, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Folder with the tokenizer of an architecture's published weights, as transformers reads it; made once.

    Raises:
        BlastError: if there are no weights, no source had them, or they come without a tokenizer.
    """
    weights, cache = _published(name).weights, cache or cache_root()
    files = weights.tokenizer(name, cache, progress)

    def build_tokenizer(aside: Path) -> dict[str, Any]:
        files.write(aside)
        if not (aside / "tokenizer.json").is_file():
            raise BlastError(f"the weights of {name} come without a tokenizer.json; choose another architecture.")
        return {"name": name, "source": files.digest}

    folder = cache / "tokenizers" / f"{name}-{files.digest.removeprefix('sha256:')[:16]}"
    build_once(folder, build_tokenizer)
    return folder


def prunable(name: str) -> list[tuple[str, int, int]]:
    """The MLP matrices of one layer as `(role, out, in)`; every layer has the same."""
    return get(name).shape.mlp_matrices


def legal_blocks(name: str, sizes: tuple[int, ...] = BLOCK_SIZES) -> list[int]:
    """The sides of square blocks, among `sizes`, that divide every MLP matrix of the architecture."""
    sides = {side for _, rows, cols in prunable(name) for side in (rows, cols)}
    return [size for size in sizes if all(side % size == 0 for side in sides)]
