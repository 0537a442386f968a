"""ImageNet-1k: cannot be downloaded freely, so its folder must be given.

The folder holds `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, as torchvision's `ImageFolder` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from blast.datasets._vision.image_folder import SETTINGS, ImageFolderData
from blast.datasets._vision.vision_data import PLACE
from blast.download.sources import Progress
from blast.errors import BlastError
from blast.files import json_digest
from blast.settings import updated

LABEL = "ImageNet"
MODALITY = "vision"
LICENCE = "ImageNet terms of access (research only)"
DESCRIPTION = "1.28 million training and 50000 validation photographs, a thousand classes"
BYTES = 0
SOURCES = ("a folder that you supply: $BLAST_IMAGENET",)
EVALUATION: list[str] = []

VARIABLE = "BLAST_IMAGENET"
GATE = (
    "its terms have to be accepted at image-net.org with an account of your own; then sort the photographs into "
    f"train/<class>/ and val/<class>/ and point {VARIABLE} at that folder (about 150 GB)."
)
SPLITS = ("train", "val")


def folder(cache: Path) -> Path:
    """Where the images are: `$BLAST_IMAGENET`, else `raw/imagenet` of the cache."""
    return Path(os.environ.get(VARIABLE) or Path(cache) / "raw" / "imagenet")


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Only looks whether the folder is there."""
    root = folder(cache)
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise BlastError(
            f"ImageNet cannot be downloaded freely and {root} has no folder {' and '.join(missing)}; "
            f"get it from image-net.org, sort it into train/<class>/ and val/<class>/, and point {VARIABLE} at it."
        )
    return {"name": "imagenet", "folder": str(root)}


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Nothing is made: the photographs are read as they are."""
    return load(cache, settings).facts("imagenet")


def load(cache: Path, settings: dict[str, Any] | None = None) -> ImageFolderData:
    """The photographs, decoded batch by batch."""
    fetch(cache)
    filled = updated(SETTINGS, settings, PLACE)
    from torchvision.datasets import ImageFolder

    train, test = (ImageFolder(folder(cache) / split) for split in SPLITS)
    names = [Path(path).name for path, _ in [*train.samples, *test.samples]]
    return ImageFolderData(
        train=train.samples,
        held_out=test.samples,
        num_classes=len(train.classes),
        image_size=filled.image_size,
        augment=filled.augment,
        # Names, not contents: 150 GB are not read for a digest.
        digest=json_digest(names, escaped=True),
    )
