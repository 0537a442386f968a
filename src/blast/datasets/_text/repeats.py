"""Paragraphs that were seen before, remembered in a fixed amount of memory, and those that share text with others."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

# 32 MiB; a paragraph is forgotten once another one takes its slot.
SLOTS = 1 << 22
# Shorter paragraphs repeat because the language does: headings, code, "See also".
SHORTEST = 100
# Words in a row that give a held-out text away; every tenth place of a paragraph is looked at.
RUN, STRIDE = 20, 10
# Whole paragraphs give it away from this many characters on; shorter ones are headings and the like.
SHORTEST_HELD_OUT = 40


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


class HeldOutText:
    """The text of held-out documents; `paragraph in text` tells whether a paragraph gives some of it away.

    It does so if it is a paragraph of theirs (of 40 characters or more), or shares a run of 29 words with them. Shorter
    runs are found at some places only.
    """

    def __init__(self) -> None:
        self._paragraphs: set[int] = set()
        self._runs: set[int] = set()

    def add(self, text: str, paragraphs: Iterable[str]) -> None:
        """Adds a document and its paragraphs."""
        self._paragraphs.update(paragraph_key(part) for part in paragraphs if len(part) >= SHORTEST_HELD_OUT)
        self._runs.update(_runs(text.split(), 1))

    def __contains__(self, paragraph: str) -> bool:
        if len(paragraph) >= SHORTEST_HELD_OUT and paragraph_key(paragraph) in self._paragraphs:
            return True
        return any(run in self._runs for run in _runs(paragraph.split(), STRIDE))


def _runs(words: list[str], stride: int) -> Iterator[int]:
    return (paragraph_key(" ".join(words[n : n + RUN])) for n in range(0, len(words) - RUN + 1, stride))
