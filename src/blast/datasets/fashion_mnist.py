"""Fashion-MNIST: 60000 + 10000 grey images of clothes in ten classes."""

from __future__ import annotations

from blast.datasets._vision.idx import IdxImages
from blast.download.registries import DebianPackage

LABEL = "Fashion-MNIST"
MODALITY = "vision"
LICENCE = "MIT"
DESCRIPTION = "60000 training and 10000 test images of clothes, 28×28 grey, ten classes"
BYTES = 30_878_645
SOURCES = ("torchvision's own addresses", "Debian package dataset-fashion-mnist")
EVALUATION: list[str] = []

_DATA = IdxImages(
    name="fashion_mnist",
    reader="FashionMNIST",
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    checksums={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    mean=0.2860,
    std=0.3530,
    packages=(DebianPackage("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist", ".gz"),),
)
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
