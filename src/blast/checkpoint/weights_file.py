"""Reads the file of the weights once, from its start to its end, straight into the memory of the tensors.

Its digest is computed on the way. The file is not memory-mapped: the pages of a mapping count as memory of the process
until the whole file is closed, so that loading would need the weights twice.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from blast.checkpoint.manifest import REMEDY
from blast.errors import BlastError
from blast.files import file_digest
from blast.tensor_parallel.parts import Part

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


class Place(NamedTuple):
    """Where a tensor of the file goes.

    Attributes:
        tensor: Contiguous, on any device; of the shape of the part. Values are cast to its dtype.
        part: What of the tensor goes there; None for all of it.
    """

    tensor: Tensor
    part: Part | None = None


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

    def read_unchecked(self, name: str) -> Tensor:
        """One tensor, before anything is compared with the digest; for small ones that decide what else to read.

        Raises:
            BlastError: if the file ends too early.
        """
        entry = self.entries[name]
        found = torch.empty(entry.shape, dtype=entry.dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + entry.start)
            self._read(file, found.view(-1).view(torch.uint8).numpy().data)
        return found

    def read_into(self, places: Mapping[str, Sequence[Place]]) -> None:
        """Reads the whole file, and keeps what goes to a place.

        Raises:
            BlastError: if the file was altered after it was written. The tensors then hold what cannot be used.
        """
        state = hashlib.sha256()
        waiting = torch.empty(CHUNK, dtype=torch.uint8)

        def next_chunk(chunk: Tensor) -> None:
            content = chunk.numpy().data
            self._read(file, content)
            state.update(content)

        with open(self.path, "rb", buffering=0) as file:
            header = bytearray(self._start)
            self._read(file, memoryview(header))
            state.update(header)
            for name, entry in self.entries.items():
                goes_to = places.get(name, ())
                if len(goes_to) != 1 or goes_to[0].part is not None:
                    waiting = _read_parts(entry, goes_to, waiting, next_chunk)
                    continue
                target, itemsize = goes_to[0].tensor.detach().view(-1), entry.dtype.itemsize
                straight = target.device.type == "cpu" and target.dtype == entry.dtype
                for first, size in _chunks(entry.stop - entry.start):
                    place = target[first // itemsize : (first + size) // itemsize]
                    chunk = place.view(torch.uint8) if straight else waiting[:size]
                    next_chunk(chunk)
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


def _read_parts(entry: Entry, places: Sequence[Place], waiting: Tensor, next_chunk: Callable[[Tensor], None]) -> Tensor:
    """Reads one tensor in runs of whole rows, and copies what is kept of each run.

    Args:
        entry: Where the tensor lies; reading stands at its start.
        places: Where its parts go; none if it is not kept.
        waiting: Memory for a run.
        next_chunk: Fills a tensor of bytes with the next ones of the file.

    Returns:
        The memory for runs, which is new if a single row is longer.
    """
    for tensor, part in places:
        if part is not None and part.value is not None:
            tensor.detach().copy_(part.value)
        elif part is not None and part.zero:
            tensor.detach().zero_()
    taken = [place for place in places if place.part is None or (place.part.value is None and not place.part.zero)]
    rows = entry.shape[0] if entry.shape else 1
    size = entry.stop - entry.start
    if not size:
        return waiting
    row = size // rows
    if row > waiting.numel():
        waiting = torch.empty(row, dtype=torch.uint8)
    run = waiting.numel() // row
    for first in range(0, rows, run):
        count = min(run, rows - first)
        chunk = waiting[: count * row]
        next_chunk(chunk)
        for tensor, part in taken:
            _copy_rows(chunk.view(count, row), first, entry, tensor.detach(), part or Part())
    return waiting


def _copy_rows(chunk: Tensor, first: int, entry: Entry, target: Tensor, part: Part) -> None:
    """Copies what a part keeps of a run of rows.

    Args:
        chunk: The bytes of the rows, `[rows, bytes of a row]`.
        first: The number of the first row.
        entry: The whole tensor.
        target: The tensor of the part.
        part: What is kept.
    """
    start, stop = first, first + len(chunk)
    if part.rows is not None:
        start, stop = torch.searchsorted(part.rows, torch.tensor([start, stop])).tolist()
        if start == stop:
            return
        chunk = _picked(chunk, 0, part.rows[start:stop] - first)
    if part.cols is not None:
        chunk = _picked(chunk.view(len(chunk), entry.shape[1], -1), 1, part.cols)
    place = target.view(-1) if not entry.shape else target[start:stop]
    place.copy_(chunk.reshape(-1).view(entry.dtype).view(place.shape))


def _picked(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Some ascending indices of a dimension; a view if they follow one another."""
    first, count = int(indices[0]), indices.numel()
    if int(indices[-1]) == first + count - 1:
        return tensor.narrow(dim, first, count)
    return tensor.index_select(dim, indices)


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
