"""Tokens on disk in shards, which are read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

# Half a gigabyte of two bytes a token: small enough to copy, few enough to keep open.
SHARD_TOKENS = 1 << 28


def token_type(vocab_size: int) -> str:
    """Little-endian type of the tokens in a file."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class ShardWriter:
    """Writes the tokens of one split to `<split>.bin`, then `<split>.00001.bin` and so on; no document is cut.

    Args:
        folder: Where the files go.
        split: Name of the split.
        limit: Tokens after which the next document begins a new file.
    """

    def __init__(self, folder: Path, split: str, limit: int = SHARD_TOKENS) -> None:
        self.folder, self.split, self.limit = folder, split, limit
        self.files: list[str] = []
        self._open: BinaryIO | None = None
        self._held = 0

    def __enter__(self) -> ShardWriter:
        self._next()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, tokens: np.ndarray) -> None:
        """Adds the tokens of one document."""
        if self._held >= self.limit:
            self._open.close()
            self._next()
        self._open.write(tokens.tobytes())
        self._held += len(tokens)

    def _next(self) -> None:
        number = len(self.files)
        self.files.append(f"{self.split}.{number:05d}.bin" if number else f"{self.split}.bin")
        self._open = (self.folder / self.files[-1]).open("wb")
        self._held = 0


class TokenShards:
    """Several arrays of tokens read as one: `len`, and an index that is a whole array or a slice.

    Args:
        shards: One-dimensional arrays of one type, in their order.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        import numpy as np

        self.shards = list(shards)
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.dtype = self.shards[0].dtype

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        import numpy as np

        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        places = np.asarray(index)
        flat = places.ravel()
        chosen = np.searchsorted(self.starts, flat, side="right") - 1
        tokens = np.empty(flat.shape, dtype=self.dtype)
        for shard in np.unique(chosen):
            here = chosen == shard
            tokens[here] = self.shards[shard][flat[here] - self.starts[shard]]
        return tokens.reshape(places.shape)


def open_shards(folder: Path, files: Sequence[str], kind: str) -> np.ndarray | TokenShards:
    """The tokens of one split, memory-mapped; one file is an array, several are `TokenShards`."""
    import numpy as np

    shards = [np.memmap(folder / file, dtype=kind, mode="r") for file in files]
    return shards[0] if len(shards) == 1 else TokenShards(shards)
