"""Digits: the 1797 handwritten digits of 8×8 pixels that come with scikit-learn; nothing to fetch."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blast.datasets._vision.vision_data import ImageSettings, VisionData
from blast.download.sources import Progress
from blast.errors import BlastError

LABEL = "digits"
MODALITY = "vision"
LICENCE = "CC-BY-4.0"
DESCRIPTION = "1437 training and 360 test images of handwritten digits, 8×8 grey, ten classes"
BYTES = 0
SOURCES = ("scikit-learn's own files",)
EVALUATION: list[str] = []

SETTINGS = ImageSettings()

TRAIN = 1437
SPLIT_SEED = 0
# Pixels are 0 to 16; times 15 they use the range of a byte.
SCALE = 15
MEAN, STD = (0.2875,), (0.3539,)


def fetch(cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Only makes sure that scikit-learn is there."""
    return {"name": "digits", "digest": load(cache).digest}


def prepare(cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Nothing is made: the images are read from scikit-learn."""
    return load(cache, settings).facts("digits")


def load(cache: Path, settings: dict[str, Any] | None = None) -> VisionData:
    """The images in memory, split once and for all by a fixed seed."""
    import numpy as np
    import torch

    batch_options = SETTINGS.batch_options(settings)
    rows = _rows()
    images = (rows[:, :-1].reshape(-1, 1, 8, 8) * SCALE).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images, labels = images[order], labels[order]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return VisionData(
        train_images=torch.from_numpy(images[:TRAIN]),
        train_labels=torch.from_numpy(labels[:TRAIN]),
        test_images=torch.from_numpy(images[TRAIN:]),
        test_labels=torch.from_numpy(labels[TRAIN:]),
        num_classes=10,
        mean=MEAN,
        std=STD,
        digest=f"sha256:{digest}",
        **batch_options,
    )


def _rows() -> Any:
    """The images, one a row, 64 pixels and the digit (float64): scikit-learn's file, for its import takes seconds."""
    import numpy as np

    package = find_spec("sklearn")
    if package is None:
        raise BlastError("the digits come with scikit-learn, which is not installed; pip install scikit-learn.")
    for folder in package.submodule_search_locations or ():
        if (file := Path(folder) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(file, delimiter=",")
    # A version that keeps it elsewhere.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
