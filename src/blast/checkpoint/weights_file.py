"""Reads the file of the weights once, from its start to its end, straight into the memory of the tensors.

Its digest is computed on the way. The file is not memory-mapped: the pages of a mapping count as memory of the process
until the whole file is closed, so that loading would need the weights twice.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from blast.checkpoint.manifest import REMEDY
from blast.errors import BlastError
from blast.files import file_digest

# Bytes read at once; every size of an element divides it. What goes to a GPU, or to another dtype, waits here.
CHUNK = 1 << 22


class Entry(NamedTuple):
    """Where a tensor lies in the file, after the header.

    Attributes:
        shape: Its shape.
        dtype: Its dtype in the file.
        start: Its first byte.
        stop: The byte after its last.
    """

    shape: list[int]
    dtype: torch.dtype
    start: int
    stop: int


class WeightsFile:
    """The file of the weights of a checkpoint. Opening it reads the header alone.

    Args:
        path: The file.
        digest: Its digest as the manifest has it, `"sha256:…"`.

    Raises:
        BlastError: if it was altered, or is no safetensors file.
    """

    def __init__(self, path: Path, digest: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self._digest = path, digest
        try:
            # Checks the header: tensors follow one another without gaps up to the end of the file.
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            self.check_unaltered()
            raise BlastError(f"{path} is not a safetensors file ({error}); save the model again.") from None
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._start = 8 + length
        found = {
            name: Entry(each["shape"], _dtype(each["dtype"]), *each["data_offsets"]) for name, each in header.items()
        }
        self.entries = dict(sorted(found.items(), key=lambda item: item[1].start))

    def check_unaltered(self) -> None:
        """Reads the file without keeping anything.

        Raises:
            BlastError: if it does not have its digest.
        """
        self._compare(file_digest(self.path))

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills a contiguous tensor for each entry, of its shape and on any device; others than its dtype are cast to.

        Raises:
            BlastError: if the file was altered after it was written. The tensors then hold what cannot be used.
        """
        state = hashlib.sha256()
        waiting = torch.empty(CHUNK, dtype=torch.uint8)
        with open(self.path, "rb", buffering=0) as file:
            header = bytearray(self._start)
            self._read(file, memoryview(header))
            state.update(header)
            for name, entry in self.entries.items():
                target, itemsize = tensors[name].detach().view(-1), entry.dtype.itemsize
                straight = target.device.type == "cpu" and target.dtype == entry.dtype
                for first, size in _chunks(entry.stop - entry.start):
                    place = target[first // itemsize : (first + size) // itemsize]
                    chunk = place.view(torch.uint8) if straight else waiting[:size]
                    content = chunk.numpy().data
                    self._read(file, content)
                    state.update(content)
                    if not straight:
                        place.copy_(chunk.view(entry.dtype))
        self._compare(f"sha256:{state.hexdigest()}")

    def _read(self, file: IO[bytes], content: memoryview) -> None:
        done = 0
        while done < len(content):
            count = file.readinto(content[done:])  # type: ignore[attr-defined]
            if not count:
                raise BlastError(f"{self.path} ends too early, so it is incomplete; {REMEDY}.")
            done += count

    def _compare(self, found: str) -> None:
        if found != self._digest:
            raise BlastError(f"{self.path} was altered after it was written (its digest does not match); {REMEDY}.")


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    """The first byte and the number of bytes of each part of `size` bytes."""
    for first in range(0, size, CHUNK):
        yield first, min(CHUNK, size - first)


@cache
def _dtype(code: str) -> torch.dtype:
    """The dtype that safetensors calls `code`."""
    from safetensors.torch import load

    header = json.dumps({"x": {"dtype": code, "shape": [0], "data_offsets": [0, 0]}}).encode()
    return load(struct.pack("<Q", len(header)) + header)["x"].dtype
