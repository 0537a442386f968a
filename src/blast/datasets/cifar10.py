"""CIFAR-10: 50000 + 10000 colour images in ten classes."""

from __future__ import annotations

from blast.datasets._vision.cifar import CifarBinary

LABEL = "CIFAR-10"
MODALITY = "vision"
LICENCE = "none stated; free for research, cite Krizhevsky 2009"
DESCRIPTION = "50000 training and 10000 test images, 32×32 colour, ten classes"
BYTES = 170_052_171
SOURCES = ("the authors' binary archive",)
EVALUATION: list[str] = []

_DATA = CifarBinary(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    checksum="c32a1d4ab5d03f1284b67883e8d87530",
    train=[f"cifar-10-batches-bin/data_batch_{part}.bin" for part in range(1, 6)],
    test=["cifar-10-batches-bin/test_batch.bin"],
    labels=1,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
