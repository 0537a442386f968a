"""CIFAR-100: 50000 + 10000 colour images in a hundred classes."""

from __future__ import annotations

from blast.datasets._vision.cifar import CifarBinary

LABEL = "CIFAR-100"
MODALITY = "vision"
LICENCE = "none stated; free for research, cite Krizhevsky 2009"
DESCRIPTION = "50000 training and 10000 test images, 32×32 colour, a hundred classes"
BYTES = 168_513_733
SOURCES = ("the authors' binary archive",)
EVALUATION: list[str] = []

_DATA = CifarBinary(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    checksum="03b5dce01913d631647c71ecec9e9cb8",
    train=["cifar-100-binary/train.bin"],
    test=["cifar-100-binary/test.bin"],
    # The coarse label comes first, the fine one second.
    labels=2,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
