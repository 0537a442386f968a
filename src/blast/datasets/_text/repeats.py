"""Paragraphs that were seen before, remembered in a fixed amount of memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

# 32 MiB; a paragraph is forgotten once another one takes its slot.
SLOTS = 1 << 22
# Shorter paragraphs repeat because the language does: headings, code, "See also".
SHORTEST = 100


def paragraph_key(paragraph: str) -> int:
    """A number of 64 bits, never 0, for a paragraph; spaces and line ends do not count."""
    content = " ".join(paragraph.split()).encode("utf-8", errors="replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


class SeenParagraphs:
    """Tells which paragraphs were seen before. It may forget one, but it never takes a new one for an old one.

    Args:
        shortest: Paragraphs of fewer characters are never taken for repeats.
        slots: How many paragraphs it can remember.
    """

    def __init__(self, shortest: int = SHORTEST, slots: int = SLOTS) -> None:
        self.shortest = shortest
        self._slots = array("Q", bytes(8 * slots))

    def new(self, paragraphs: Iterable[str]) -> list[str]:
        """The paragraphs without those that were seen before, in their order; all of them count as seen then."""
        return [paragraph for paragraph in paragraphs if not self._seen(paragraph)]

    def _seen(self, paragraph: str) -> bool:
        if len(paragraph) < self.shortest:
            return False
        key = paragraph_key(paragraph)
        slot = key % len(self._slots)
        seen = self._slots[slot] == key
        self._slots[slot] = key
        return seen
