"""Text datasets on the model hub: parquet files listed with their checksums, fetched like any other file."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.datasets.cache import locked, write_atomically
from blast.datasets.digests import settings_digest
from blast.datasets.download import Progress, RemoteFile, SourceError, UrlSource, fetch_files, open_address
from blast.errors import BlastError

HUB = "https://huggingface.co"
LISTING = "listing.json"


@dataclass(frozen=True)
class HubText:
    """Parquet files of one hub dataset.

    Attributes:
        name: Its name here.
        repository: `owner/name` on the hub.
        revision: Commit, so that the data never change under the same name.
        folders: Folders of the repository whose parquet files are wanted.
    """

    name: str
    repository: str
    revision: str
    folders: Sequence[str]

    def folder(self, cache: Path) -> Path:
        """Where the files go."""
        return Path(cache) / "raw" / self.name

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Lists the files once, then brings them into the cache."""
        folder = self.folder(cache)
        with locked(folder / LISTING):
            if not (folder / LISTING).exists():
                write_atomically(folder / LISTING, json.dumps(self._ask(folder), indent=1) + "\n")
        files = self.files(cache)
        base = f"{HUB}/datasets/{self.repository}/resolve/{self.revision}/"
        fetch_files(self.name, files, [UrlSource(base)], folder, progress)
        return {"name": self.name, "digest": self.digest(cache), "folder": str(folder), "files": len(files)}

    def files(self, cache: Path) -> list[RemoteFile]:
        """The files, as the hub listed them."""
        path = self.folder(cache) / LISTING
        if not path.exists():
            raise BlastError(f"{self.name} is not in {path.parent}; fetch it first.")
        listing = json.loads(path.read_text(encoding="utf-8"))
        return [RemoteFile(name, f"sha256:{checksum}") for name, checksum in sorted(listing.items())]

    def digest(self, cache: Path) -> str:
        """Digest of the data: of the files' checksums."""
        return settings_digest([[file.name, file.checksum] for file in self.files(cache)])

    def rows(self, cache: Path, part: str = "") -> Iterator[str]:
        """The `text` column of the files whose path holds `part`, in the order of their names."""
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise BlastError(f"{self.name} comes as parquet, which needs pyarrow; pip install pyarrow.") from error
        for file in self.files(cache):
            if part in file.name:
                for group in parquet.ParquetFile(self.folder(cache) / file.name).iter_batches(columns=["text"]):
                    yield from group.column("text").to_pylist()

    def _ask(self, folder: Path) -> dict[str, str]:
        """Names and sha256 of the parquet files; the hub lists large files with both."""
        found = {}
        for part in self.folders:
            address = f"{HUB}/api/datasets/{self.repository}/tree/{self.revision}/{part}"
            try:
                with open_address(urllib.request.Request(address)) as answer:
                    entries = json.load(answer)
            except (SourceError, OSError, ValueError) as fault:
                raise BlastError(
                    f"{self.name} could not be fetched ({address}: {fault}); check the network, or bring the folder "
                    f"{folder} from a machine that has it."
                ) from fault
            for entry in entries:
                if entry["path"].endswith(".parquet") and "lfs" in entry:
                    found[entry["path"]] = entry["lfs"]["oid"]
        if not found:
            raise BlastError(f"the hub lists no parquet files of {self.repository} in {', '.join(self.folders)}.")
        return found
