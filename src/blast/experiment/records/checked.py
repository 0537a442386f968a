"""Records that were read and found good, by the digest of their bytes: their parts need no second look.

To check ten thousand records takes three times as long as to read them. What is good depends on the bytes and on this
code alone, so it is noted in the cache: `<cache>/code/<digest of the code>.checked`. A note that is damaged counts as
none.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from blast.errors import BlastError
from blast.experiment.records.code_cache import beside_code, keep_newest
from blast.files import write_atomically
from blast.untrusted import MIB, read_bytes

WIDTH = 16
# Ten grids of ten thousand points.
MOST = 100_000


class Checked:
    """The bytes that this code found to be good records, in this process and in earlier ones."""

    def __init__(self) -> None:
        self._file = beside_code(".checked")
        self._known = self._read()
        self._new = False

    def __contains__(self, content: bytes) -> bool:
        return _name(content) in self._known

    def add(self, content: bytes) -> None:
        """Notes that these bytes are a good record."""
        self._known.add(_name(content))
        self._new = True

    def save(self) -> None:
        """Keeps what is new for later processes, where the cache can be written."""
        if self._file is None or not self._new:
            return
        # Others may have found more in the meantime.
        known = self._known | self._read()
        body = b"".join(sorted(known if len(known) <= MOST else self._known)[:MOST])
        with suppress(BlastError, OSError):
            write_atomically(self._file, hashlib.sha256(body).digest() + body)
            keep_newest(self._file.parent, self._file.suffix)

    def _read(self) -> set[bytes]:
        try:
            content = read_bytes(self._file, MIB * 4) if self._file else b""
        except (OSError, ValueError):
            return set()
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return set()
        return {body[place : place + WIDTH] for place in range(0, len(body), WIDTH)}


def _name(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:WIDTH]
