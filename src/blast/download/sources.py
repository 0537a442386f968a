"""Downloads files from several sources, tried in order; a file counts only if its checksum is right."""

from __future__ import annotations

import gzip
import http.client
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blast.errors import BlastError
from blast.files import file_digest, locked, remove, replacing
from blast.untrusted import copy_bounded

Progress = Callable[[str], None]

# All sources are probed at once: without a network, a fetch fails after this many seconds.
ANSWER_S = 4.0
# A transfer that receives nothing for this long fails; the next attempt resumes it.
IDLE_S = 20.0
ATTEMPTS = 3
# A server that did not answer is not asked again for this long.
SILENT_S = 60.0
CHUNK = 1 << 18
OFFLINE = "BLAST_OFFLINE"
SHORTEST_CHECKSUM = 8


_silent_until: dict[str, float] = {}


class SourceError(Exception):
    """Why a source did not give its files, in a few words.

    Attributes:
        status: The HTTP status, where a server refused.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        name: Its name in the folder, which may hold slashes.
        checksum: `"sha256:…"`, `"md5:…"` or `"git:…"` (git's digest of a blob) of its content (after unpacking, where a
            source packs it). Of a sha256 the first eight digits are enough: some publishers give no more.
    """

    name: str
    checksum: str

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has the expected content."""
        algorithm, _, expected = self.checksum.partition(":")
        if len(expected) < SHORTEST_CHECKSUM or not path.is_file():
            return False
        return file_digest(path, algorithm).startswith(self.checksum)


class Source(Protocol):
    """Where files can be downloaded from."""

    label: str

    def probe(self, files: Sequence[RemoteFile]) -> None:
        """Raises `SourceError` within `ANSWER_S` seconds if the source cannot be reached."""

    def download(self, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
        """Puts the files into `folder` under their names; raises `SourceError` if it cannot."""


@dataclass(frozen=True)
class UrlSource:
    """Files below one address.

    Attributes:
        base: Address that the file names are appended to.
        suffix: What the server adds to the names; `".gz"` files are unpacked.
    """

    base: str
    suffix: str = ""

    @property
    def label(self) -> str:
        """The address, for people."""
        return self.base

    def address(self, file: RemoteFile) -> str:
        """Where the file is."""
        return f"{self.base}{file.name}{self.suffix}"

    def probe(self, files: Sequence[RemoteFile]) -> None:
        """Asks for the first byte of the first file."""
        open_address(request_for(self.address(files[0]), part="bytes=0-0")).close()

    def download(self, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
        """Downloads each file; what an earlier attempt left is resumed."""
        for file in files:
            packed = folder / f"{file.name}{self.suffix}"
            packed.parent.mkdir(parents=True, exist_ok=True)
            download_file(self.address(file), packed, progress)
            if self.suffix == ".gz":
                unpack_gzip(packed, folder / file.name)


def fetch_files(
    dataset: str,
    files: Sequence[RemoteFile],
    sources: Sequence[Source],
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Makes sure that `folder` holds all files with the right content.

    A file that is already there and right is kept, so files may also be put there by hand. One with another content
    is moved aside as `<name>.damaged`, and the next source is tried.

    Args:
        dataset: Name for messages.
        files: The files.
        sources: In the order to try.
        folder: Folder that takes the files.
        progress: Called with one line of text now and then.

    Raises:
        BlastError: if no source had them; one sentence with each source, its reason, and what to do by hand.
    """
    report = progress or (lambda line: None)
    with locked(folder):
        folder.mkdir(parents=True, exist_ok=True)
        reasons: list[str] = []
        missing = _check(files, folder, "in the folder", reasons)
        if not missing:
            return
        silent = _probe_all(sources, missing)
        for source in sources:
            if source.label in silent:
                reasons.append(f"{source.label}: {silent[source.label]}")
                continue
            report(f"{dataset}: fetching {len(missing)} file(s) from {source.label}")
            # What an earlier attempt left may be damaged: then the file is fetched once more, from its beginning.
            for attempt in (1, 2):
                resumed, found = any(folder.rglob("*.part")), []
                try:
                    source.download(missing, folder, report)
                except SourceError as fault:
                    found.append(f"{source.label}: {fault}")
                missing = _check(missing, folder, f"from {source.label}", found)
                if not missing:
                    return
                if attempt == 2 or not resumed or any(folder.rglob("*.part")):
                    break
            reasons += found
        names = ", ".join(file.name for file in missing)
        raise BlastError(
            f"{dataset} could not be fetched ({'; '.join(reasons)}); put {names} into {folder} by hand, then run again."
        )


def unpack_gzip(packed: Path, path: Path) -> None:
    """Replaces a gzip file by its content at `path`.

    Raises:
        SourceError: if the file is damaged; neither file is kept.
    """
    try:
        with replacing(path, alone=True) as temporary, gzip.open(packed) as source, open(temporary, "wb") as target:
            copy_bounded(source, target, packed.stat().st_size)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(f"{packed.name} is damaged ({error})") from error
    finally:
        packed.unlink(missing_ok=True)


def _check(files: Sequence[RemoteFile], folder: Path, origin: str, reasons: list[str]) -> list[RemoteFile]:
    """The files that are still missing; damaged ones are moved aside and noted in `reasons`."""
    missing = []
    for file in files:
        path = folder / file.name
        if file.matches(path):
            continue
        missing.append(file)
        if path.exists() or path.is_symlink():
            aside = path.with_name(path.name + ".damaged")
            remove(aside)
            os.replace(path, aside)
            reasons.append(f"{file.name} {origin} has the wrong checksum")
    return missing


def _probe_all(sources: Sequence[Source], files: Sequence[RemoteFile]) -> dict[str, str]:
    """Asks all sources at once; returns the reason of each that cannot be reached, by its label."""

    def ask(source: Source) -> str | None:
        try:
            source.probe(files)
        except SourceError as fault:
            return str(fault)
        return None

    with ThreadPoolExecutor(max_workers=max(1, len(sources))) as pool:
        answers = list(pool.map(ask, sources))
    return {source.label: reason for source, reason in zip(sources, answers, strict=True) if reason}


def request_for(
    address: str, headers: Mapping[str, str] | None = None, part: str | None = None
) -> urllib.request.Request:
    """A request whose `headers` go to this server alone; `part` is the range of bytes that is wanted."""
    request = urllib.request.Request(address, headers={"Range": part} if part else {})
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    return request


def download_file(address: str, path: Path, progress: Progress) -> None:
    """Downloads `address` to `path`; a partial download stays in `<path>.part` and is resumed.

    Raises:
        SourceError: if the file is not complete after a few attempts.
    """
    part = path.with_name(path.name + ".part")
    if part.is_symlink() or part.is_dir():
        remove(part)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(address, part, progress)
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                raise SourceError(f"{path.name} was cut off ({error}); what came is kept") from error
            continue
        os.replace(part, path)
        return


def _append(address: str, part: Path, progress: Progress) -> None:
    """Appends the missing bytes of the file at `address` to `part`; raises OSError if the transfer is cut."""
    have = part.stat().st_size if part.exists() else 0
    response = open_address(request_for(address, part=f"bytes={have}-" if have else None))
    with response:
        if have and getattr(response, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:
            # The server ignored the range and sends the whole file.
            have = 0
        total = have + int(response.headers.get("Content-Length") or 0)
        reported = time.monotonic()
        with open(part, "ab" if have else "wb") as target:
            while chunk := response.read(CHUNK):
                target.write(chunk)
                have += len(chunk)
                if time.monotonic() - reported > 1:
                    reported = time.monotonic()
                    progress(f"{part.stem}: {have / 1e6:.1f} of {total / 1e6:.1f} MB")
    if have < total:
        raise OSError(f"{have} of {total} bytes")


def check_online() -> None:
    """Refuses to download where `BLAST_OFFLINE` says so, as in the jobs of a cluster.

    Raises:
        SourceError: if it does.
    """
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise SourceError(f"{OFFLINE} is set, so nothing is downloaded; `blast fetch CONFIG` does it before")


def open_address(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Opens an address within `ANSWER_S` seconds, which include name resolution and all addresses of the host."""
    check_online()
    server = urllib.parse.urlsplit(request.full_url).netloc
    if time.monotonic() < _silent_until.get(server, 0.0):
        raise SourceError("it gave no answer a moment ago")
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def attempt() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=IDLE_S))
        # Whatever goes wrong is raised in the caller's thread.
        except Exception as error:
            answer.put(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        got = answer.get(timeout=ANSWER_S)
    except queue.Empty:
        _silent_until[server] = time.monotonic() + SILENT_S
        raise SourceError(f"no answer within {ANSWER_S:g} s") from None
    if isinstance(got, urllib.error.HTTPError):
        if got.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and request.get_header("Range") != "bytes=0-0":
            # The partial file is as long as the file, or longer: start from the beginning.
            return open_address(request_for(request.full_url))
        raise SourceError(f"the server answers {got.code} {got.reason}", got.code)
    if isinstance(got, Exception):
        raise SourceError(str(getattr(got, "reason", got)))
    return got
