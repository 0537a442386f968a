"""What MNIST and its likes share: four IDX files, read by torchvision's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from blast.datasets._vision.vision_data import ImageSettings, VisionData
from blast.download.sources import Progress, RemoteFile, Source, UrlSource, fetch_files
from blast.errors import BlastError
from blast.files import json_digest

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


@dataclass(frozen=True)
class IdxImages:
    """One dataset of 28×28 grey images in MNIST's format.

    Attributes:
        name: Its name here.
        reader: Name of torchvision's class for it.
        mirrors: Addresses of that class, written out here because importing torchvision takes seconds.
        checksums: sha256 of each unpacked file. Archives differ between sources, their content does not.
        mean: Of the training pixels scaled to [0, 1].
        std: Likewise.
        packages: Further sources, after torchvision's own addresses.
    """

    name: str
    reader: str
    mirrors: Sequence[str]
    checksums: Mapping[str, str]
    mean: float
    std: float
    packages: Sequence[Source] = ()
    settings: ClassVar = ImageSettings()

    @property
    def digest(self) -> str:
        """Digest of the data: of the files' checksums."""
        return json_digest(dict(self.checksums), escaped=True)

    def folder(self, cache: Path) -> Path:
        """Where torchvision's class looks for the unpacked files."""
        return self._root(cache) / self.reader / "raw"

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Brings the four files into the cache."""
        files = [RemoteFile(name, f"sha256:{checksum}") for name, checksum in self.checksums.items()]
        sources = [UrlSource(mirror, ".gz") for mirror in self.mirrors]
        fetch_files(self.name, files, [*sources, *self.packages], self.folder(cache), progress)
        return {"name": self.name, "digest": self.digest, "folder": str(self.folder(cache))}

    def prepare(self, cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Nothing is made: the files are read as they are."""
        return self.load(cache, settings).facts(self.name)

    def load(self, cache: Path, settings: dict[str, Any] | None = None) -> VisionData:
        """The images in memory."""
        batch_options = self.settings.batch_options(settings)
        if not all((self.folder(cache) / name).exists() for name in self.checksums):
            raise BlastError(f"{self.name} is not in {self.folder(cache)}; fetch it first.")
        train, test = (self._class()(self._root(cache), train=train, download=False) for train in (True, False))
        return VisionData(
            train_images=train.data.unsqueeze(1),
            train_labels=train.targets.long(),
            test_images=test.data.unsqueeze(1),
            test_labels=test.targets.long(),
            num_classes=len(train.classes),
            mean=(self.mean,),
            std=(self.std,),
            digest=self.digest,
            **batch_options,
        )

    def _root(self, cache: Path) -> Path:
        return Path(cache) / "raw" / self.name

    def _class(self) -> type[MNIST]:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.reader)
