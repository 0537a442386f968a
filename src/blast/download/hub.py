"""Repositories of the model hub: the hub's own client fetches, and every file is checked against the hub's listing.

Files lie in `hub/` of the cache as the client lays them out (`models--owner--name/snapshots/<revision>/…`). A folder
of that client, or one copied from another machine, can therefore be used as it is.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

from blast.download.sources import IDLE_S, Progress, RemoteFile, SourceError, open_address, request_for
from blast.errors import BlastError
from blast.files import file_digest, json_digest, locked, remove, write_atomically
from blast.untrusted import is_inner_path

HUB = "https://huggingface.co"
TOKEN = "HF_TOKEN"
SHA256_DIGITS = 64
REFUSED = (401, 403)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def hub_address() -> str:
    """The hub, or the mirror that `HF_ENDPOINT` names, as for the hub's own client."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


@dataclass(frozen=True)
class HubFiles:
    """Some files of one repository.

    Attributes:
        name: Its name here, for messages.
        kind: `"models"` or `"datasets"`.
        repository: `owner/name` on the hub.
        revision: Commit, so that the content never changes under the same name.
        wanted: Shell-style patterns of paths; each has to match at least one file.
        gate: Terms that the owner asks users to accept, and how; empty where there are none.
    """

    name: str
    kind: str
    repository: str
    revision: str
    wanted: Sequence[str]
    gate: str = ""

    @property
    def label(self) -> str:
        """The repository, for people."""
        return f"{hub_address()}/{self._prefix}{self.repository}"

    def repository_folder(self, cache: Path) -> Path:
        """The repository's folder in the cache."""
        return Path(cache) / "hub" / f"{self.kind}--{self.repository.replace('/', '--')}"

    def folder(self, cache: Path) -> Path:
        """Where the files go; the client notes in `refs/` which commit a branch is."""
        root = self.repository_folder(cache)
        branch = root / "refs" / self.revision
        commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else self.revision
        return root / "snapshots" / commit

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Makes sure that the files are in the cache and right, asking the hub for what is missing.

        Returns:
            Facts: repository, revision, digest, folder, number of files and their bytes.

        Raises:
            BlastError: one sentence that says why the hub did not give them and what to do.
        """
        if not (self._is_listed(cache) and self._checked_before(cache)):
            with locked(self._listing(cache)):
                if not self._is_listed(cache):
                    self._make_list(cache)
                if not self._checked_before(cache):
                    self._complete(cache, progress or (lambda line: None))
        return {
            "name": self.name,
            "repository": self.repository,
            "revision": self.revision,
            "digest": self.digest(cache),
            "folder": str(self.folder(cache)),
            "files": len(self.files(cache)),
            "bytes": self.size(cache),
        }

    def files(self, cache: Path) -> list[RemoteFile]:
        """The wanted files with their checksums, as the hub listed them, in the order of their names."""
        return [RemoteFile(path, entry["checksum"]) for path, entry in self._entries(cache).items()]

    def digest(self, cache: Path) -> str:
        """Digest of the content: of the files' checksums."""
        return json_digest([[file.name, file.checksum] for file in self.files(cache)], escaped=True)

    def size(self, cache: Path) -> int:
        """Bytes of all files together."""
        return sum(entry["bytes"] for entry in self._entries(cache).values())

    def paths(self, cache: Path, pattern: str = "*") -> list[Path]:
        """The files in the cache whose path matches `pattern`, in the order of their names.

        Raises:
            BlastError: if they are not there.
        """
        found = [self.folder(cache) / path for path in self._entries(cache) if fnmatchcase(path, pattern)]
        for path in found:
            if not path.is_file():
                raise BlastError(f"{self.name} is not complete, {path} is missing; fetch it first.")
        return found

    @property
    def _prefix(self) -> str:
        return "datasets/" if self.kind == "datasets" else ""

    def _listing(self, cache: Path) -> Path:
        """Our list of the wanted files; another choice of files of the same repository has a list of its own."""
        choice = json_digest([self.revision, *self.wanted], escaped=True).removeprefix("sha256:")[:12]
        return self.repository_folder(cache) / f"blast-{choice}.json"

    def _entries(self, cache: Path) -> dict[str, dict[str, Any]]:
        if not self._is_listed(cache):
            raise BlastError(f"{self.name} is not in {self.folder(cache)}; fetch it first.")
        return json.loads(self._listing(cache).read_text(encoding="utf-8"))

    def _is_listed(self, cache: Path) -> bool:
        """Whether there is a list of the wanted files that can be used."""
        try:
            entries = json.loads(self._listing(cache).read_text(encoding="utf-8"))
            return all(
                is_inner_path(name) and isinstance(entry["checksum"], str) and isinstance(entry["bytes"], int)
                for name, entry in entries.items()
            ) and not self._missing(list(entries))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False

    def _keep(self, cache: Path, entries: dict[str, dict[str, Any]]) -> None:
        write_atomically(self._listing(cache), json.dumps(dict(sorted(entries.items())), indent=1) + "\n")

    def _make_list(self, cache: Path) -> None:
        """Lists the wanted files: by what the cache holds, else by what the hub says.

        Where a list was damaged the hub is asked first: the files may be damaged too.
        """
        if not self._listing(cache).exists():
            self._adopt(cache) or self._list(cache)
            return
        remove(self._listing(cache))
        try:
            self._list(cache)
        except BlastError:
            if not self._adopt(cache):
                raise

    def _adopt(self, cache: Path) -> bool:
        """Lists what lies in the cache already, if nothing is missing of it or damaged."""
        root = self.folder(cache)
        there = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
        names = [path.relative_to(root).as_posix() for path in there]
        chosen = [name for name in names if self._wants(name)]
        if self._missing(chosen):
            return False
        entries = {}
        for name in chosen:
            path = root / name
            checksum = file_digest(path)
            # The client keeps content under its checksum and links to it from the snapshot.
            blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
            if len(blob) == SHA256_DIGITS and f"sha256:{blob}" != checksum:
                print(f"{path} is damaged: its content is not what its name {blob} says", file=sys.stderr)
                # The hub is asked for the list, by which the file is fetched again.
                return False
            entries[name] = {"checksum": checksum, "bytes": path.stat().st_size}
        self._keep(cache, entries)
        return True

    def _list(self, cache: Path) -> None:
        """Asks the hub for names, sizes and checksums."""
        client = _client()
        address = f"{hub_address()}/api/{self.kind}/{self.repository}/revision/{self.revision}"
        try:
            _reach(client, address)
            about = client.HfApi(endpoint=hub_address(), token=_token() or False).repo_info(
                self.repository,
                repo_type=self.kind.removesuffix("s"),
                revision=self.revision,
                timeout=IDLE_S,
                files_metadata=True,
            )
        except _failures(client) as fault:
            raise self._failed(
                fault,
                f"{self.label}: {_reason(fault)}",
                f"check the network, or copy the folder {self.folder(cache)} from a machine that has it",
            ) from fault
        entries = {}
        for file in about.siblings:
            if self._wants(file.rfilename) and is_inner_path(file.rfilename):
                checksum = f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
                entries[file.rfilename] = {"checksum": checksum, "bytes": file.size}
        if missing := self._missing(list(entries)):
            raise BlastError(
                f"{self.label} has no file {', '.join(missing)} at revision {self.revision}; name another revision in "
                f"the source of {self.name}."
            )
        self._keep(cache, entries)

    def _complete(self, cache: Path, report: Progress) -> None:
        """Downloads what is missing or damaged, then notes that all files are right."""
        reasons: list[str] = []
        missing = self._check(cache, self.files(cache), "in the folder", reasons)
        if missing:
            base = f"{hub_address()}/{self._prefix}{self.repository}/resolve/{self.revision}/"
            report(f"{self.name}: fetching {len(missing)} file(s) from {base}")
            fault = self._download_files(cache, missing, base, report)
            if fault:
                reasons.append(f"{base}: {_reason(fault)}")
            missing = self._check(cache, missing, f"from {base}", reasons)
            if missing:
                names = ", ".join(file.name for file in missing)
                remedy = f"put {names} into {self.folder(cache)} by hand, then run again"
                raise self._failed(fault, "; ".join(reasons), remedy) from fault
        write_atomically(self._checked(cache), json.dumps(self._seen(cache)) + "\n")

    def _download_files(
        self, cache: Path, files: Sequence[RemoteFile], base: str, report: Progress
    ) -> Exception | None:
        """Lets the client download files; returns why it could not."""
        client = _client()
        try:
            _reach(client, f"{base}{files[0].name}")
            for file in files:
                # A cut transfer is resumed within this call, in steps of 10 MB; a killed one begins its file anew.
                client.hf_hub_download(
                    self.repository,
                    file.name,
                    repo_type=self.kind.removesuffix("s"),
                    revision=self.revision,
                    cache_dir=Path(cache) / "hub",
                    token=_token() or False,
                    endpoint=hub_address(),
                    etag_timeout=IDLE_S,
                    tqdm_class=_lines(file.name, report),
                )
        except _failures(client) as fault:
            return fault
        return None

    def _check(self, cache: Path, files: Iterable[RemoteFile], origin: str, reasons: list[str]) -> list[RemoteFile]:
        """The files that are missing; damaged ones are moved aside and noted in `reasons`."""
        missing = []
        for file in files:
            path = self.folder(cache) / file.name
            if file.matches(path):
                continue
            missing.append(file)
            if path.exists():
                # The content itself, or the client would link to it again.
                aside = path.with_name(path.name + ".damaged")
                remove(aside)
                os.replace(path.resolve(), aside)
                path.unlink(missing_ok=True)
                reasons.append(f"{file.name} {origin} has the wrong checksum")
        return missing

    def _checked(self, cache: Path) -> Path:
        return self._listing(cache).with_suffix(".checked")

    def _seen(self, cache: Path) -> dict[str, list[int] | None]:
        """Size and time of each file as it lies there."""
        found: dict[str, list[int] | None] = {}
        for file in self.files(cache):
            path = self.folder(cache) / file.name
            found[file.name] = [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None
        return found

    def _checked_before(self, cache: Path) -> bool:
        """Whether no file has changed since all checksums were right: gigabytes are not read before each run."""
        try:
            return json.loads(self._checked(cache).read_text(encoding="utf-8")) == self._seen(cache)
        except (OSError, ValueError, RecursionError):
            return False

    def _wants(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.wanted)

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Patterns without a file, and parts of a file in several that are not there."""
        missing = [pattern for pattern in self.wanted if not any(fnmatchcase(name, pattern) for name in names)]
        for name in names:
            if part := PART.search(name):
                of = int(part[2])
                parts = [PART.sub(f"-{number:05d}-of-{part[2]}.", name) for number in range(of)]
                # Hubs count from 0 for data and from 1 for weights.
                from_one = [PART.sub(f"-{number:05d}-of-{part[2]}.", name) for number in range(1, of + 1)]
                missing += min(([p for p in some if p not in names] for some in (parts, from_one)), key=len)
        return missing

    def _failed(self, fault: Exception | None, reason: str, remedy: str) -> BlastError:
        """One sentence for a failure; what to accept where that is why the hub refused."""
        if self.gate and _status(fault) in REFUSED:
            return BlastError(f"{self.name}: {self.gate}")
        return BlastError(f"{self.name} could not be fetched ({reason}); {remedy}.")


def _client() -> ModuleType:
    """The hub's own client; imported only here, as most runs find their files in the cache."""
    # Xet is another protocol for the same files; the user may allow it by setting 0.
    for switch in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        os.environ.setdefault(switch, "1")
    import huggingface_hub.errors

    return huggingface_hub


def _reach(client: ModuleType, address: str) -> None:
    """Raises `SourceError` within seconds where the hub does not answer: its client retries for minutes."""
    if client.is_offline_mode():
        raise SourceError("HF_HUB_OFFLINE is set")
    token = {"Authorization": f"Bearer {_token()}"} if _token() else {}
    open_address(request_for(address, token, "bytes=0-0")).close()


def _failures(client: ModuleType) -> tuple[type[Exception], ...]:
    """What the client raises: errors of its HTTP library, of the disk, and for answers that are no listing."""
    return (SourceError, client.errors.HTTPError, OSError, ValueError, KeyError, TypeError)


def _cause(fault: Exception | None) -> BaseException | None:
    """The answer of the hub, which the client may wrap in general advice."""
    while fault is not None and _response(fault) is None and isinstance(fault.__cause__, Exception):
        fault = fault.__cause__
    return fault


def _response(fault: BaseException | None) -> Any:
    return getattr(fault, "response", None)


def _status(fault: Exception | None) -> int | None:
    found = _cause(fault)
    return found.status if isinstance(found, SourceError) else getattr(_response(found), "status_code", None)


def _reason(fault: Exception) -> str:
    response = _response(_cause(fault))
    if response is not None:
        return f"the server answers {response.status_code} {response.reason_phrase}"
    return (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")


def _token() -> str:
    """The user's own access token, where one is set; it goes to the hub alone."""
    return os.environ.get(TOKEN, "").strip()


def _lines(name: str, report: Progress) -> type:
    """A progress bar for the client that reports a line of text at most once a second."""

    class Lines:
        def __init__(self, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.have, self.total, self.reported = initial, total or 0, time.monotonic()

        def update(self, count: int) -> None:
            self.have += count
            if time.monotonic() - self.reported > 1:
                self.reported = time.monotonic()
                report(f"{name}: {self.have / 1e6:.1f} of {self.total / 1e6:.1f} MB")

        def __enter__(self) -> Lines:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Lines
