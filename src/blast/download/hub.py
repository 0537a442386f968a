"""Repositories of the model hub: files listed with their checksums, then fetched like any other file.

They lie in `hub/` of the cache exactly as the hub's own client lays them out
(`models--owner--name/snapshots/<revision>/…`), so a folder of that client, or one brought from another machine, is
taken as it is. Standard library alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from blast.download.sources import Progress, RemoteFile, SourceError, UrlSource, fetch_files, open_address, request_for
from blast.errors import BlastError
from blast.files import file_digest, json_digest, locked, write_atomically

HUB = "https://huggingface.co"
TOKEN = "HF_TOKEN"
SHA256_DIGITS = 64
REFUSED = ("401", "403")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def hub_address() -> str:
    """The hub, or the mirror that `HF_ENDPOINT` names, as for the hub's own client."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


@dataclass(frozen=True)
class HubFiles:
    """Some files of one repository.

    Attributes:
        name: What it is called here, for messages.
        kind: `"models"` or `"datasets"`.
        repository: `owner/name` on the hub.
        revision: Commit, so that the content never changes under the same name.
        wanted: Shell-style patterns of paths; each has to match at least one file.
        gate: What the repository's owner wants accepted before files are handed out, or nothing.
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
        return f"{hub_address()}/{'datasets/' if self.kind == 'datasets' else ''}{self.repository}"

    def repository_folder(self, cache: Path) -> Path:
        """The repository's folder in the cache."""
        return Path(cache) / "hub" / f"{self.kind}--{self.repository.replace('/', '--')}"

    def folder(self, cache: Path) -> Path:
        """Where the files go."""
        return self.repository_folder(cache) / "snapshots" / self.revision

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Makes sure that the files are in the cache and right, asking the hub for what is missing.

        Returns:
            Facts: repository, revision, digest, folder, number of files and their bytes.

        Raises:
            BlastError: one sentence that says why the hub did not give them and what to do.
        """
        if not self._listing(cache).exists():
            with locked(self._listing(cache)):
                if not self._listing(cache).exists():
                    self._adopt(cache) or self._ask(cache)
        files = self.files(cache)
        if not self._checked_before(cache):
            self._bring(cache, files, progress)
        return {
            "name": self.name,
            "repository": self.repository,
            "revision": self.revision,
            "digest": self.digest(cache),
            "folder": str(self.folder(cache)),
            "files": len(files),
            "bytes": self.size(cache),
        }

    def _bring(self, cache: Path, files: Sequence[RemoteFile], progress: Progress | None) -> None:
        kind = "datasets/" if self.kind == "datasets" else ""
        base = f"{hub_address()}/{kind}{self.repository}/resolve/{self.revision}/"
        try:
            fetch_files(self.name, files, [UrlSource(base, headers=_token())], self.folder(cache), progress)
        except BlastError as fault:
            raise self._with_gate(fault) from fault
        write_atomically(self._seen_file(cache), json.dumps(self._seen(cache)) + "\n")

    def _seen_file(self, cache: Path) -> Path:
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
        path = self._seen_file(cache)
        return path.exists() and json.loads(path.read_text(encoding="utf-8")) == self._seen(cache)

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

    def _listing(self, cache: Path) -> Path:
        """Our list of the wanted files; another choice of files of the same repository has a list of its own."""
        choice = json_digest([self.revision, *self.wanted], escaped=True).removeprefix("sha256:")[:12]
        return self.repository_folder(cache) / f"blast-{choice}.json"

    def _entries(self, cache: Path) -> dict[str, dict[str, Any]]:
        path = self._listing(cache)
        if not path.exists():
            raise BlastError(f"{self.name} is not in {self.folder(cache)}; fetch it first.")
        return json.loads(path.read_text(encoding="utf-8"))

    def _keep(self, cache: Path, entries: dict[str, dict[str, Any]]) -> None:
        path = self._listing(cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dict(sorted(entries.items())), indent=1) + "\n")

    def _adopt(self, cache: Path) -> bool:
        """Lists what lies in the cache already, if nothing is missing of it."""
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
            # The hub's client keeps content under its checksum and links to it from the snapshot.
            blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
            if len(blob) == SHA256_DIGITS and f"sha256:{blob}" != checksum:
                raise BlastError(f"{path} is damaged: its content is not what its name {blob} says; delete it.")
            entries[name] = {"checksum": checksum, "bytes": path.stat().st_size}
        self._keep(cache, entries)
        return True

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

    def _ask(self, cache: Path) -> None:
        """Asks the hub for names, sizes and checksums."""
        address = f"{hub_address()}/api/{self.kind}/{self.repository}/tree/{self.revision}?recursive=true"
        try:
            with open_address(request_for(address, _token())) as answer:
                listed = json.load(answer)
        except (SourceError, OSError, ValueError) as fault:
            raise self._with_gate(
                BlastError(
                    f"{self.name} could not be fetched ({self.label}: {fault}); check the network, or bring the folder "
                    f"{self.folder(cache)} from a machine that has it."
                )
            ) from fault
        entries = {}
        for entry in listed:
            if entry["type"] == "file" and self._wants(entry["path"]):
                large = entry.get("lfs")
                checksum = f"sha256:{large['oid']}" if large else f"git:{entry['oid']}"
                entries[entry["path"]] = {"checksum": checksum, "bytes": entry["size"]}
        if missing := self._missing(list(entries)):
            raise BlastError(
                f"{self.label} has no file {', '.join(missing)} at revision {self.revision}; name another revision in "
                f"the source of {self.name}."
            )
        self._keep(cache, entries)

    def _with_gate(self, fault: BlastError) -> BlastError:
        """The fault, with what to accept where that is why the hub refused."""
        if not self.gate or not any(f"answers {code}" in str(fault) for code in REFUSED):
            return fault
        return BlastError(f"{self.name}: {self.gate}")


def _token() -> dict[str, str]:
    """The user's own access token, where one is set; it goes to the hub alone."""
    token = os.environ.get(TOKEN, "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}
