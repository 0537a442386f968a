"""Evaluation requests in a file: token ids to score, and the documents that they come from.

The file is JSON lines, gzipped: a header, then documents, then requests. The same content gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from blast.errors import BlastError, one_line
from blast.files import text_digest, write_atomically
from blast.untrusted import MIB, gunzip, is_inner_path, read_bytes

FORMAT = 1
# Unpacked; the requests of all tasks on all their items have some hundred megabytes.
LARGEST = 4096 * MIB
KINDS = ("loglikelihood", "loglikelihood_rolling")
# Among the settings of a request file: nothing in it comes from the held-out documents that settings are chosen by.
SEPARATE_TEST = "separate_test"


@dataclass(frozen=True)
class Request:
    """One evaluation request.

    Attributes:
        key: Digest of the kind and the text of the request; it identifies the score.
        task: Name of the task.
        kind: `loglikelihood` (of the continuation after the context) or `loglikelihood_rolling` (of a whole text,
            in windows as long as the model allows, each token predicted once).
        context: Token ids of the context; for a rolling request the one token before the text.
        continuation: Token ids to score.
    """

    key: str
    task: str
    kind: str
    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class RequestFile:
    """All requests of several tasks, for one tokenizer.

    Attributes:
        tasks: Names of the tasks, in order.
        requests: The requests.
        documents: By file name, the documents that the tasks read.
        settings: How the requests were made (tokenizer digest, prefix token, limit, version of lm-eval).
    """

    tasks: list[str]
    requests: list[Request]
    documents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of everything in the file."""
        return _digest(self._lines())

    def _lines(self) -> list[str]:
        header = {"format": FORMAT, "tasks": self.tasks, "settings": self.settings}
        documents = [{"file": name, "document": row} for name, rows in self.documents.items() for row in rows]
        return [_line(value) for value in (header, *documents, *map(asdict, self.requests))]

    def write(self, file: Path) -> str:
        """Writes the file atomically and returns the digest."""
        lines = self._lines()
        digest = _digest(lines)
        text = "\n".join([_line({"digest": digest}), *lines]) + "\n"
        write_atomically(file, compress(text))
        return digest


def read_requests(file: Path) -> RequestFile:
    """Reads a request file and checks its digest.

    Raises:
        BlastError: if it is missing, damaged, or of another format.
    """
    file = Path(file)
    remedy = "delete it and build the requests again."
    try:
        first, *lines = gunzip(read_bytes(file, LARGEST), LARGEST).decode().splitlines()
        if json.loads(first)["digest"] != _digest(lines):
            raise BlastError(f"{file}: this request file was altered and does not match its own digest; {remedy}")
        header, *rows = map(json.loads, lines)
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this request file does not exist; build the requests first.") from error
    except BlastError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BlastError(f"{file}: this request file is damaged or half-written; {remedy}") from error
    if not isinstance(header, dict):
        raise BlastError(f"{file}: this request file is damaged or half-written; {remedy}")
    if header.get("format") != FORMAT:
        raise BlastError(
            f"{file}: its format {header.get('format')} is not the format {FORMAT} of this version; {remedy}"
        )
    documents: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in rows:
            if "document" in row:
                documents.setdefault(row["file"], []).append(row["document"])
        requests = [Request(**row) for row in rows if "document" not in row]
        found = RequestFile(header["tasks"], requests, documents, header["settings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BlastError(f"{file}: this request file is damaged or half-written; {remedy}") from error
    # They are written into a folder under these names.
    if odd := [name for name in documents if not is_inner_path(name) or "/" in name]:
        raise BlastError(f"{file}: the name {one_line(odd[0])[:80]} of its documents is no file name; {remedy}")
    return found


def compress(text: str) -> bytes:
    """Gzip without file name and time, so that the same text gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as stream:
        stream.write(text.encode())
    return buffer.getvalue()


def _line(value: Any) -> str:
    # ASCII only, because a line separator in a document would split the line.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _digest(lines: list[str]) -> str:
    return text_digest("\n".join(lines))
