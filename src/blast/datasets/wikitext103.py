"""WikiText-103: good and featured articles of the English Wikipedia, held out as its authors do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blast.datasets._text.hub_text import HubText
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import Document, TextSettings, open_text, prepare_text

LABEL = "WikiText-103"
MODALITY = "language"
LICENCE = "CC-BY-SA-3.0"
DESCRIPTION = "articles of the English Wikipedia, about 100 million words"
BYTES = 315_000_000
SOURCES = ("the model hub: Salesforce/wikitext",)

EVALUATION = ["text_heldout"]

SETTINGS = TextSettings(vocab_size=32768)
TITLE = re.compile(r"^ = [^=].* = \n$")
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
_DATA = HubText("wikitext103", "Salesforce/wikitext", REVISION, ("wikitext-103-raw-v1",))
fetch = _DATA.fetch


def articles(rows: Iterator[str]) -> Iterator[str]:
    """Rows are lines; an article begins with its title."""
    lines: list[str] = []
    for row in rows:
        if TITLE.match(row) and lines:
            yield "".join(lines)
            lines = []
        lines.append(row)
    if lines:
        yield "".join(lines)


def documents(cache: Path) -> Iterator[Document]:
    """All articles; the authors' validation split is held out."""
    for split in ("train", "validation"):
        for place, text in enumerate(articles(_DATA.rows(cache, f"/{split}-"))):
            yield Document(f"{split}/{place}", text, split == "validation")


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    return prepare_text(cache, "wikitext103", partial(documents, cache), _DATA.digest(cache), filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
