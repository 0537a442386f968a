"""Evaluation documents for lm-eval: pieces of the held-out documents, and questions about the next line.

Both are drawn from the held-out documents by digests of names, so that they are the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from blast.files import digest_number

HELD_OUT_FILE = "heldout.jsonl"
NEXT_LINE_FILE = "next_line.jsonl"
PIECES, PIECE_BYTES = 64, 2000
ITEMS, ITEMS_A_DOCUMENT = 200, 6
CONTEXT_LINES = 15
CHOICES = 4
SHORTEST_LINE = 12


def cut(text: str, size: int = PIECE_BYTES) -> list[str]:
    """Pieces of at most `size` bytes that end at line ends; a longer line is left out, and short rests too."""
    pieces, piece, length = [], [], 0
    for line in [*text.splitlines(keepends=True), None]:
        new = len(line.encode()) if line is not None else 0
        if line is None or length + new > size:
            if length > size // 2:
                pieces.append("".join(piece))
            piece, length = [], 0
        if line is not None and new <= size:
            piece.append(line)
            length += new
    return pieces


def held_out_pieces(documents: Iterable[tuple[str, str]], count: int = PIECES) -> list[dict[str, str]]:
    """`count` pieces of the `(name, text)` documents, drawn by the digest of document and place."""
    found = [
        {"name": f"{name}#{place}", "text": piece} for name, text in documents for place, piece in enumerate(cut(text))
    ]
    return sorted(found, key=lambda piece: digest_number(piece["name"]))[:count]


def next_line_items(name: str, text: str) -> list[dict[str, str | int | list[str]]]:
    """Questions on one document: which of four lines of it comes next?

    The wrong lines are those of the document, outside the context, whose length is nearest to that of the right one;
    all choices differ, none occurs in the context, and each has at least `SHORTEST_LINE` characters.
    """
    # Not splitlines(): a form feed ends no line of a source file.
    lines = text.split("\n")
    items = []
    places = range(CONTEXT_LINES, len(lines))
    for place in sorted(places, key=lambda place: digest_number(f"{name}:{place}"))[: 4 * ITEMS_A_DOCUMENT]:
        right = lines[place].rstrip()
        context = lines[place - CONTEXT_LINES : place]
        seen = {line.strip() for line in context} | {right.strip()}
        if len(right.strip()) < SHORTEST_LINE or right.strip() in {line.strip() for line in context}:
            continue
        others: dict[str, str] = {}
        for line in lines[: place - CONTEXT_LINES] + lines[place + 1 :]:
            if len(line.strip()) >= SHORTEST_LINE and line.strip() not in seen:
                others.setdefault(line.strip(), line.rstrip())
        if len(others) < CHOICES - 1:
            continue
        key = f"{name}:{place}"
        wrong = sorted(others.values(), key=lambda line: (abs(len(line) - len(right)), digest_number(key + line)))
        choices = wrong[: CHOICES - 1]
        label = digest_number(f"{key}:label") % CHOICES
        choices.insert(label, right)
        items.append({"name": key, "context": "\n".join(context) + "\n", "choices": choices, "label": label})
        if len(items) == ITEMS_A_DOCUMENT:
            break
    return items


def write_evaluation(documents: Iterable[tuple[str, str]], folder: Path) -> dict[str, int]:
    """Writes both files to `folder` and returns how many entries each has."""
    documents = list(documents)
    pieces = held_out_pieces(documents)
    items = [item for name, text in documents for item in next_line_items(name, text)]
    items = sorted(items, key=lambda item: digest_number(str(item["name"])))[:ITEMS]
    for file, entries in ((HELD_OUT_FILE, pieces), (NEXT_LINE_FILE, items)):
        with open(folder / file, "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    return {"evaluation_pieces": len(pieces), "next_line_items": len(items)}
