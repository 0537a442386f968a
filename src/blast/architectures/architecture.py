"""The entry of one model in a family file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blast.architectures.shapes import ModelShape

if TYPE_CHECKING:
    from torch import nn


# Makes a model of a family with fresh weights.
Build = Callable[[ModelShape], "nn.Module"]


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that is in the cache.

    Attributes:
        digest: Digest of the files that it is made from.
        write: Writes it to an empty folder as transformers saves it, `tokenizer.json` among the files.
    """

    digest: str
    write: Callable[[Path], None]


class Weights(Protocol):
    """Published weights of one model: how they are downloaded and opened.

    Attributes:
        label: Where they come from, for people.
        licence: Their licence.
        gate: Terms to accept before the download, and how; empty where there are none.
        bytes: Size of the download, as published.
    """

    label: str
    licence: str
    gate: str
    bytes: int

    def fetch(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Downloads them into the cache; returns facts (`digest`, `folder`, …) or raises one sentence."""

    def open(self, name: str, shape: ModelShape, build: Build, cache: Path, **sizes: int | None) -> nn.Module:
        """The model with these weights, in float32, without dropout.

        Args:
            name: Name of the architecture.
            shape: Its sizes.
            build: Makes the family's model of given sizes, with fresh weights.
            cache: Cache that holds the weights.
            sizes: `classes`, `image` and `channels` that differ from the published ones; a new head starts fresh.
        """

    def tokenizer(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> TokenizerFiles:
        """The model's tokenizer; downloads no more than the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model by name, without its weights.

    Attributes:
        name: The name used in configs, e.g. `"gpt2-nano"`.
        family: The file that builds it, e.g. `"gpt2"`; filled in when the file is found.
        modality: `"language"`, `"encoder"` or `"vision"`.
        shape: Its sizes.
        weights: The published weights, or None.
        description: One line for people; `blast list` prints it.
    """

    name: str
    modality: str
    shape: ModelShape
    family: str = ""
    weights: Weights | None = None
    description: str = ""
