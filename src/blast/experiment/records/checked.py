"""Records that were read and found good, by the digest of their bytes: they need no second look.

To check ten thousand records takes three times as long as to read them, and to read them takes longer than all else
that a plan needs. What is good depends on the bytes and on this code alone, so it is noted in the cache:
`<cache>/code/<digest of the code>.checked`. Of a record that shows its point to be done, the note also tells of which
point, and the digest of the record. A note that is damaged counts as none.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from blast.errors import BlastError
from blast.experiment.records.code_cache import beside_code, keep_newest
from blast.files import write_atomically
from blast.untrusted import MIB, read_bytes

# How the digest of a record begins.
SHA256 = "sha256:"
# Bytes of a note: the digest of a record's bytes, that of the point that it shows to be done, and the record's own.
NAME, POINT, RECORD = 16, 16, 32
NOTE = NAME + POINT + RECORD
# Ten grids of ten thousand points.
MOST = 100_000
NOT_DONE = bytes(POINT + RECORD)


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
        self._note(content, NOT_DONE)

    def add_done(self, content: bytes, point: str, record_digest: str) -> None:
        """Notes that these bytes are a good record, and show that nothing of its point is left to do.

        Args:
            content: The bytes.
            point: What the record has to be of, to show that: a text that names the point, its settings and its code.
            record_digest: Digest of the record, `"sha256:…"`.
        """
        self._note(content, _name(point.encode()) + bytes.fromhex(record_digest.removeprefix(SHA256)))

    def done(self, content: bytes, point: str) -> str | None:
        """Digest of a record that shows a point to be done; None if these bytes are not known to do so.

        Args:
            content: The bytes of its record.
            point: As for `add_done`.
        """
        note = self._known.get(_name(content), NOT_DONE)
        return f"{SHA256}{note[POINT:].hex()}" if note[:POINT] == _name(point.encode()) else None

    def save(self) -> None:
        """Keeps what is new for later processes, where the cache can be written."""
        if self._file is None or not self._new:
            return
        # Others may have found more in the meantime.
        known = self._read() | self._known
        kept = known if len(known) <= MOST else self._known
        body = b"".join(name + note for name, note in sorted(kept.items())[:MOST])
        with suppress(BlastError, OSError):
            write_atomically(self._file, hashlib.sha256(body).digest() + body)
            keep_newest(self._file.parent, self._file.suffix)

    def _note(self, content: bytes, note: bytes) -> None:
        self._known[_name(content)] = note
        self._new = True

    def _read(self) -> dict[bytes, bytes]:
        try:
            content = read_bytes(self._file, MIB * 8) if self._file else b""
        except (OSError, ValueError):
            return {}
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return {}
        return {body[at : at + NAME]: body[at + NAME : at + NOTE] for at in range(0, len(body), NOTE)}


def _name(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:NAME]
