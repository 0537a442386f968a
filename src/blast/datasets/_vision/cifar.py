"""What CIFAR-10 and CIFAR-100 share: the authors' binary archive, as the other one holds pickles."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from blast.datasets._vision.vision_data import ImageSettings, VisionData
from blast.download.sources import Progress, RemoteFile, UrlSource, fetch_files
from blast.errors import BlastError
from blast.files import json_digest

AUTHORS = "https://www.cs.toronto.edu/~kriz/"
SIDE, CHANNELS = 32, 3
PIXELS = CHANNELS * SIDE * SIDE


@dataclass(frozen=True)
class CifarBinary:
    """One of the two datasets.

    Attributes:
        name: Its name here.
        archive: The archive.
        checksum: md5 of the archive, as the authors publish it.
        train: Members with training records.
        test: Members with test records.
        labels: Label bytes before the pixels of each record; the last counts.
        num_classes: Number of classes.
        mean: By channel, of the training pixels scaled to [0, 1].
        std: Likewise.
    """

    name: str
    archive: str
    checksum: str
    train: Sequence[str]
    test: Sequence[str]
    labels: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    settings: ClassVar = ImageSettings()

    @property
    def digest(self) -> str:
        """Digest of the data: of the archive's checksum."""
        return json_digest({self.archive: self.checksum}, escaped=True)

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Brings the archive into the cache."""
        file = RemoteFile(self.archive, f"md5:{self.checksum}")
        fetch_files(self.name, [file], [UrlSource(AUTHORS)], self._folder(cache), progress)
        return {"name": self.name, "digest": self.digest, "folder": str(self._folder(cache))}

    def prepare(self, cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Nothing is made: the archive is read as it is."""
        return self.load(cache, settings).facts(self.name)

    def load(self, cache: Path, settings: dict[str, Any] | None = None) -> VisionData:
        """The images in memory."""
        batch_options = self.settings.batch_options(settings)
        path = self._folder(cache) / self.archive
        if not path.exists():
            raise BlastError(f"{self.name} is not in {path.parent}; fetch it first.")
        train_images, train_labels = self._records(path, self.train)
        test_images, test_labels = self._records(path, self.test)
        return VisionData(
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            digest=self.digest,
            **batch_options,
        )

    def _folder(self, cache: Path) -> Path:
        return Path(cache) / "raw" / self.name

    def _records(self, path: Path, members: Sequence[str]) -> Any:
        """Images and labels of some members of the archive, read without unpacking it."""
        import numpy as np
        import torch

        with tarfile.open(path) as archive:
            content = b"".join(archive.extractfile(member).read() for member in members)
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, self.labels + PIXELS)
        images = records[:, self.labels :].reshape(-1, CHANNELS, SIDE, SIDE)
        return torch.from_numpy(images.copy()), torch.from_numpy(records[:, self.labels - 1].astype(np.int64))
