"""OpenWebText: web pages that people linked to, a public reproduction of GPT-2's training data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blast.datasets._text.hub_text import HubText
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import Document, SplitTextSettings, is_held_out, open_text, prepare_text

LABEL = "OpenWebText"
MODALITY = "language"
LICENCE = "CC0-1.0 (the collection; the pages belong to their authors)"
DESCRIPTION = "8 million web pages, about 40 GB of text"
BYTES = 24_200_000_000
SOURCES = ("the model hub: Skylion007/openwebtext",)

EVALUATION = ["text_heldout"]

# The share that nanoGPT holds out.
SETTINGS = SplitTextSettings(vocab_size=50257, held_out=0.0005)
REVISION = "79d93d786212f7344586290adb811d4ae6a1762c"
_DATA = HubText("openwebtext", "Skylion007/openwebtext", REVISION, ("plain_text",))
fetch = _DATA.fetch


def documents(cache: Path, held_out: float) -> Iterator[Document]:
    """All pages, held out by the digest of their number."""
    for place, text in enumerate(_DATA.rows(cache)):
        name = f"openwebtext/{place}"
        yield Document(name, text, is_held_out(name, held_out))


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    pages = partial(documents, cache, filled["held_out"])
    return prepare_text(cache, "openwebtext", pages, _DATA.digest(cache), filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
