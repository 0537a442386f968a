"""pystdlib: the source code of the running interpreter's standard library; nothing to fetch, on any machine.

Its content is fixed by the Python version and recorded by its digest. Held out by file.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from functools import partial
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
from blast.download.sources import Progress
from blast.errors import BlastError

LABEL = "Python stdlib"
MODALITY = "language"
LICENCE = "PSF-2.0"
DESCRIPTION = "Python sources of the running interpreter's standard library, without tests and tables"
BYTES = 0
SOURCES = ("the running interpreter",)
EVALUATION = ["pystdlib_heldout", "pystdlib_next_line"]

SETTINGS = SplitTextSettings(vocab_size=2048, held_out=0.1)
# Tests are repetitive; code pages and the help texts of pydoc are tables, not code; the rest is not the library's own.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "idlelib",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
FEWEST = 20


def library() -> Path:
    """Folder of the interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def sources(root: Path) -> list[str]:
    """Paths below `root` of the files that count, sorted; symbolic links are not followed."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in files:
            path = Path(folder, name)
            # _sysconfigdata and its like describe the machine that Python was built on.
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and not path.is_symlink():
                found.append(path.relative_to(root).as_posix())
    return sorted(found)


def documents(root: Path, held_out: float) -> Iterator[Document]:
    """The files that are text, in the order of their names."""
    for name in sources(root):
        try:
            text = (root / name).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield Document(name, text, is_held_out(name, held_out))


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Only makes sure that the interpreter has its sources."""
    root = library()
    count = len(sources(root))
    if count < FEWEST:
        raise BlastError(
            f"this Python has only {count} source files in {root}; use an interpreter installed with its library."
        )
    return {"name": "pystdlib", "folder": str(root), "files": count}


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tokenizer, tokens and evaluation documents; see `prepare_text`."""
    filled = SETTINGS.filled(settings)
    texts = partial(documents, library(), filled["held_out"])
    return prepare_text(cache, "pystdlib", texts, documents_digest(texts()), filled)


def load(cache: Path, settings: dict[str, Any] | None = None) -> LanguageData:
    """The prepared tokens."""
    return open_text(prepare(cache, settings))
