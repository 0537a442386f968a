"""Prepares a text dataset: tokenizer, token files and evaluation documents."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from blast.datasets._text.evaluation_documents import HELD_OUT_FILE, NEXT_LINE_FILE, write_evaluation
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.token_shards import ShardWriter, open_shards, token_type
from blast.datasets._text.tokenizer import (
    FILE,
    copy_tokenizer,
    end_of_text,
    load_tokenizer,
    token_bytes,
    train_tokenizer,
)
from blast.download.cache import FACTS, build_once
from blast.errors import BlastError
from blast.files import digest_number, file_digest, json_digest
from blast.settings import Bounds, Name, Place, plain, updated

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Increased whenever the meaning of the prepared files changes.
FORMAT = 2
# More text does not improve a BPE.
TOKENIZER_BYTES = 200_000_000
# Evaluation documents are drawn from this much held-out text.
EVALUATION_BYTES = 20_000_000
ENCODED_AT_ONCE = 256
BYTES_OF_VOCABULARY = 257
# Gigabytes take an hour: progress is printed this often.
PROGRESS_EVERY_S = 10.0
TOKENIZER = "tokenizer"
PLACE = Place("data setting")


@dataclass(frozen=True)
class Document:
    """One text, and whether training must not see it."""

    name: str
    text: str
    held_out: bool


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name belongs to the held-out `share`: decided by the name's digest alone."""
    return digest_number(name) < share * 2**64


def documents_digest(documents: Iterable[Document]) -> str:
    """Digest of the names and texts of documents, `"sha256:…"`; who is held out does not count."""
    state = hashlib.sha256()
    for document in documents:
        content = document.text.encode()
        state.update(f"{document.name}\0{len(content)}\0".encode())
        state.update(content)
    return f"sha256:{state.hexdigest()}"


@dataclass(frozen=True)
class TextSettings:
    """Settings of a text dataset whose authors say what is held out.

    Attributes:
        vocab_size: Size of the tokenizer that is trained on the text; not used with `tokenizer`.
        tokenizer: Architecture whose own tokenizer is used, or the path of a folder with a `tokenizer.json`; without
            it, one is trained on the text.
    """

    vocab_size: Annotated[int, Bounds(ge=BYTES_OF_VOCABULARY)]
    tokenizer: Name | None = None

    def filled(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """These settings with the given ones over them, as plain values: those that the data depend on.

        Raises:
            BlastError: for an unknown setting or a wrong value.
        """
        values = plain(updated(self, given, PLACE))
        # A given tokenizer has the size that it has.
        del values["vocab_size" if values[TOKENIZER] else TOKENIZER]
        return values


@dataclass(frozen=True, kw_only=True)
class SplitTextSettings(TextSettings):
    """Settings of a text dataset that we split.

    Attributes:
        held_out: Share of the documents that is held out.
    """

    held_out: Annotated[float, Bounds(gt=0, lt=1)]


def prepare_text(
    cache: Path,
    dataset: str,
    documents: Callable[[], Iterable[Document]],
    source_digest: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Makes tokenizer, tokens and evaluation documents, unless the cache has them.

    Args:
        cache: Cache folder.
        dataset: Name of the dataset.
        documents: Called twice: for the tokenizer and for the tokens; the order must be the same.
        source_digest: Digest of all documents.
        settings: Full settings; with the digest they name the folder.

    Returns:
        Facts: digests, counts, `vocab_size`, and the paths of what was made.
    """
    described = {"format": FORMAT, "source": source_digest, "settings": settings}
    published = published_tokenizer(settings.get(TOKENIZER), Path(cache))
    if published:
        described["tokenizer"] = _identity(published)
    key = json_digest(described, escaped=True)
    folder = Path(cache) / "prepared" / dataset / key.partition(":")[2][:16]

    def build(aside: Path) -> dict[str, Any]:
        if published:
            tokenizer = copy_tokenizer(published, aside / "tokenizer")
        else:
            tokenizer = train_tokenizer(_training_texts(documents()), settings["vocab_size"], aside / "tokenizer")
        counts, held_out, shards = _write_tokens(_with_progress(dataset, documents()), tokenizer, aside)
        counts |= write_evaluation(held_out, aside)
        files = (f"tokenizer/{FILE}", *shards["train"], *shards["validation"], HELD_OUT_FILE, NEXT_LINE_FILE)
        digests = {file: file_digest(aside / file) for file in files}
        return {
            "name": dataset,
            "digest": json_digest({"source": source_digest, "files": digests}, escaped=True),
            "source_digest": source_digest,
            "digests": digests,
            "settings": settings,
            "counts": counts,
            "shards": shards,
            "vocab_size": len(token_bytes(tokenizer)),
        }

    facts = build_once(folder, build)
    return facts | {
        "folder": str(folder),
        "tokenizer_dir": str(folder / "tokenizer"),
        "evaluation": {"heldout": str(folder / HELD_OUT_FILE), "next_line": str(folder / NEXT_LINE_FILE)},
    }


def open_text(facts: dict[str, Any]) -> LanguageData:
    """Opens what `prepare_text` made."""
    folder = Path(facts["folder"])
    tokenizer = load_tokenizer(folder / "tokenizer")
    kind = token_type(facts["vocab_size"])
    # Data prepared before there were shards name none.
    shards = facts.get("shards", {"train": ["train.bin"], "validation": ["validation.bin"]})
    return LanguageData(
        train=open_shards(folder, shards["train"], kind),
        validation=open_shards(folder, shards["validation"], kind),
        token_bytes=token_bytes(tokenizer),
        end_of_text=end_of_text(tokenizer, folder / "tokenizer"),
        tokenizer_dir=folder / "tokenizer",
        digest=facts["digest"],
        counts=facts["counts"],
    )


def published_tokenizer(architecture: str | None, cache: Path) -> Path | None:
    """Folder of the tokenizer of an architecture's published weights, or the folder that is given; None without."""
    if not architecture:
        return None
    if os.sep in architecture:
        return Path(architecture)
    from blast import architectures

    return architectures.tokenizer_folder(architecture, cache)


def _identity(tokenizer: Path) -> str:
    """What names a given tokenizer: its folder if that has a digest in its name, else a digest of its file."""
    return tokenizer.name if (tokenizer / FACTS).is_file() else file_digest(tokenizer / FILE)


def _training_texts(documents: Iterable[Document]) -> Iterator[str]:
    """Texts to train the tokenizer on: none that is held out, and at most `TOKENIZER_BYTES`."""
    read = 0
    for document in documents:
        if not document.held_out and read < TOKENIZER_BYTES:
            read += len(document.text)
            yield document.text


def _write_tokens(
    documents: Iterable[Document], tokenizer: Tokenizer, folder: Path
) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, list[str]]]:
    """Writes the tokens of both splits; returns counts, held-out documents for the evaluation, and the files."""
    import numpy as np

    kind, end = token_type(len(token_bytes(tokenizer))), end_of_text(tokenizer, folder / "tokenizer")
    counts = {f"{split}_{what}": 0 for split in ("train", "validation") for what in ("documents", "bytes", "tokens")}
    kept: list[tuple[str, str]] = []
    kept_bytes = 0
    with ShardWriter(folder, "train") as train, ShardWriter(folder, "validation") as validation:
        for group in _groups(documents):
            texts = [document.text for document in group]
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            for document, encoding in zip(group, encodings, strict=True):
                split, target = ("validation", validation) if document.held_out else ("train", train)
                tokens = np.array([*encoding.ids, end], dtype=kind)
                target.write(tokens)
                size = len(document.text.encode())
                counts[f"{split}_documents"] += 1
                counts[f"{split}_bytes"] += size
                counts[f"{split}_tokens"] += len(tokens)
                if document.held_out and kept_bytes < EVALUATION_BYTES:
                    kept.append((document.name, document.text))
                    kept_bytes += size
    for split in ("train", "validation"):
        if not counts[f"{split}_documents"]:
            raise BlastError(f"no document is left for {split}; choose another held_out share.")
    return counts, kept, {"train": train.files, "validation": validation.files}


def _with_progress(dataset: str, documents: Iterable[Document]) -> Iterator[Document]:
    """The documents; progress is printed on the way."""
    read, reported = 0, time.monotonic()
    for document in documents:
        read += len(document.text)
        if time.monotonic() - reported > PROGRESS_EVERY_S:
            reported = time.monotonic()
            print(f"{dataset}: {read / 1e6:.0f} MB of text tokenised", file=sys.stderr, flush=True)
        yield document


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if len(group) == ENCODED_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
