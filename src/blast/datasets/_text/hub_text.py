"""Text datasets on the model hub: parquet files, read row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.download.hub import HubFiles
from blast.download.sources import Progress
from blast.errors import BlastError


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

    @property
    def source(self) -> HubFiles:
        """The files on the hub."""
        wanted = tuple(f"{folder}/*.parquet" for folder in self.folders)
        return HubFiles(self.name, "datasets", self.repository, self.revision, wanted)

    def folder(self, cache: Path) -> Path:
        """Where the files go."""
        return self.source.folder(cache)

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Lists the files once, then brings them into the cache."""
        return self.source.fetch(cache, progress)

    def digest(self, cache: Path) -> str:
        """Digest of the data: of the files' checksums."""
        return self.source.digest(cache)

    def rows(self, cache: Path, part: str = "") -> Iterator[str]:
        """The `text` column of the files whose path holds `part`, in the order of their names."""
        for row in parquet_rows(self.source.paths(cache, f"*{part}*"), ["text"]):
            yield row["text"]


def parquet_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of parquet files, a batch in memory at a time."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BlastError("datasets of the hub are parquet files; pip install pyarrow.") from error
    for file in files:
        with parquet.ParquetFile(file) as opened:
            for group in opened.iter_batches(columns=list(columns) if columns else None):
                yield from group.to_pylist()
