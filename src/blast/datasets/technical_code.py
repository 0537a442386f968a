"""Technical English and Python source together: `technical_text` and `pystdlib`, to train published models further on.

A document is held out here exactly if it is held out there, at the share of this dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blast.datasets import pystdlib, technical_text
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import Document, SplitTextSettings, documents_digest, open_text, prepare_text
from blast.download.sources import Progress

LABEL = "technical English + Python"
MODALITY = "language"
LICENCE = f"{technical_text.LICENCE}; {pystdlib.LICENCE} (Python's standard library)"
DESCRIPTION = "technical_text and pystdlib together: about 90 MB of prose, reference and code"
BYTES = technical_text.BYTES
SOURCES = (*technical_text.SOURCES, *pystdlib.SOURCES)
EVALUATION = ["text_heldout"]

SETTINGS = SplitTextSettings(vocab_size=32768, held_out=0.02)


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Fetches both.

    Raises:
        BlastError: naming the package that could not be fetched, and why.
    """
    code, text = pystdlib.fetch(cache, progress), technical_text.fetch(cache, progress)
    return {"name": "technical_code", "folders": [text["folder"], code["folder"]], "packages": text["packages"]}


def documents(cache: Path, held_out: float) -> Iterator[Document]:
    """The documents of technical_text, then those of pystdlib."""
    yield from technical_text.documents(cache, held_out)
    yield from pystdlib.documents(pystdlib.library(), held_out)


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    texts = partial(documents, cache, filled["held_out"])
    return prepare_text(cache, "technical_code", texts, documents_digest(texts()), filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
