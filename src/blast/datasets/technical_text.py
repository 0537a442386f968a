"""Technical English: a dictionary, the documentation of Linux and of Python, and a long book, as Debian packages them.

About a hundred megabytes of prose and reference that any Debian machine can get, model hub or not. The packages are
those of one release of Debian. Where only others can be had, the text differs a little: the digest is recorded, and
results on other texts are not compared. Its perplexity is not that of WikiText.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import (
    Document,
    SplitTextSettings,
    documents_digest,
    is_held_out,
    open_text,
    prepare_text,
)
from blast.download.contents import fault_of, write_contents
from blast.download.registries import unpack_debian
from blast.download.sources import Progress, SourceError
from blast.errors import BlastError
from blast.files import locked, remove, write_atomically

LABEL = "technical English"
MODALITY = "language"
LICENCE = "GPL-3+ (GCIDE), GPL-2.0 (Linux), PSF-2.0 (Python), GFDL (An Anarchist FAQ)"
DESCRIPTION = "a dictionary, the documentation of Linux and Python, and a long book: about 80 MB of text"
BYTES = 71_600_000
SOURCES = ("Debian packages dict-gcide, linux-doc-6.1, python3.11-doc and anarchism",)
EVALUATION = ["text_heldout"]

SETTINGS = SplitTextSettings(vocab_size=32768, held_out=0.02)
# A dictionary is one file: it is cut at its entries into documents of this many characters.
DICTIONARY_PIECE = 20_000
SHORTEST = 200
LEFT_OUT = ("script", "style", "head")


class _Prose(HTMLParser):
    """The running text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside += tag in LEFT_OUT
        if tag in ("p", "br", "h1", "h2", "h3", "li", "blockquote"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag in LEFT_OUT

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.parts.append(data)


def prose(page: str) -> str:
    """The text of an HTML page, a paragraph a line."""
    parser = _Prose()
    parser.feed(page)
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def entries(text: str) -> Iterator[str]:
    """A dictionary in pieces of about `DICTIONARY_PIECE` characters that end between paragraphs."""
    piece: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        size += len(paragraph)
        if size >= DICTIONARY_PIECE:
            yield "\n\n".join(piece) + "\n"
            piece, size = [], 0
    if piece:
        yield "\n\n".join(piece) + "\n"


def _whole(text: str) -> Iterator[str]:
    yield text


def _page(text: str) -> Iterator[str]:
    yield prose(text)


# Package, pattern of its files, and how a file becomes documents.
PARTS: tuple[tuple[str, str, Callable[[str], Iterator[str]]], ...] = (
    ("dict-gcide", "usr/share/dictd/gcide.dict.dz", entries),
    ("linux-doc-6.1", "usr/share/doc/linux-doc-6.1/Documentation/**/*.rst*", _whole),
    ("python3.11-doc", "usr/share/doc/python3.11/html/_sources/**/*.rst.txt", _whole),
    ("anarchism", "usr/share/doc/anarchism/html/*.html", _page),
)


def raw(cache: Path) -> Path:
    """Folder of the unpacked packages."""
    return Path(cache) / "raw" / "technical_text"


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Downloads and unpacks the packages that are missing or damaged, and keeps of them what is read.

    The files of a package may also be put into its folder by hand.

    Raises:
        BlastError: naming the package that could not be fetched, and why.
    """
    versions = {}
    for package, pattern, _ in PARTS:
        folder, stamp = raw(cache) / package, raw(cache) / f"{package}.json"
        with locked(folder):
            if fault_of(folder, partial(_stamped, stamp)) is not None:
                if progress:
                    progress(f"technical_text: fetching the Debian package {package}")
                name = _download(package, pattern, folder, by_hand=not stamp.exists())
                write_contents(folder)
                write_atomically(stamp, json.dumps({"package": name}) + "\n")
        versions[package] = _stamped(stamp, folder)["package"]
    return {"name": "technical_text", "folder": str(raw(cache)), "packages": versions}


def _stamped(stamp: Path, _folder: Path) -> dict[str, Any]:
    """What is known of a package: the name of its file.

    Raises:
        OSError: if it was not fetched.
        ValueError: if the stamp is damaged.
    """
    values = json.loads(stamp.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "package" not in values:
        raise ValueError(f"{stamp} names no package")
    return values


def _download(package: str, pattern: str, folder: Path, by_hand: bool) -> str:
    """Fetches a package; returns the name of its file. What was put there by hand is taken where that fails."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".apt-") as made:
        try:
            unpacked, name = unpack_debian(package, Path(made))
        except (SourceError, OSError) as fault:
            if by_hand and any(folder.glob(pattern)):
                return f"{package}, put there by hand"
            raise BlastError(
                f"technical_text could not be fetched (Debian package {package}: {fault}); on another system unpack "
                f"the package into {folder} by hand, then run again."
            ) from fault
        kept = Path(made) / "kept"
        for path in sorted(unpacked.glob(pattern)):
            # Some packages link to files of others, or to their own a second time.
            if path.is_file() and not path.is_symlink():
                target = kept / path.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
        if not kept.exists():
            raise BlastError(f"the Debian package {name} holds no {pattern}; its layout has changed, report it.")
        remove(folder)
        kept.rename(folder)
    return name


def documents(cache: Path, held_out: float) -> Iterator[Document]:
    """All texts, each once, held out by the digest of their names."""
    seen: set[bytes] = set()
    for package, pattern, documents_of in PARTS:
        folder = raw(cache) / package
        if not folder.is_dir():
            raise BlastError(f"technical_text is not in {raw(cache)}; fetch it first.")
        for path in sorted(folder.glob(pattern)):
            if not path.is_file():
                continue
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            content = path.read_bytes()
            if path.suffix in (".gz", ".dz"):
                content = gzip.decompress(content)
            for place, text in enumerate(documents_of(content.decode("utf-8", errors="replace"))):
                digest = hashlib.sha256(text.encode()).digest()
                if len(text) < SHORTEST or digest in seen:
                    continue
                seen.add(digest)
                piece = f"{name}#{place}"
                yield Document(piece, text, is_held_out(piece, held_out))


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    texts = partial(documents, cache, filled["held_out"])
    return prepare_text(cache, "technical_text", texts, documents_digest(texts()), filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
