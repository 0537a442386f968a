"""Labelled photographs on disk, decoded when a batch needs them; batches depend on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from blast.datasets._vision.vision_data import batch_indices, spread_evenly
from blast.errors import BlastError
from blast.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

# Torchvision's constants for ImageNet, and its share of the shorter side that evaluation crops.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_SHARE = 224 / 256


@dataclass(frozen=True)
class ImageFolderSettings:
    """Settings of photographs in folders.

    Attributes:
        augment: `none` crops the middle of training images too; the others crop at random and mirror.
        image_size: Side in pixels that images are resized to.
    """

    augment: Literal["none", "shift", "shift_flip"] = "none"
    image_size: Count = 224


SETTINGS = ImageFolderSettings()


@dataclass(frozen=True)
class ImageFolderData:
    """Photographs with labels, with the interface of `VisionData`.

    Attributes:
        train: Path and label of each training image.
        held_out: Likewise of the test images.
        num_classes: Number of classes.
        image_size: Side in pixels that images are resized to.
        augment: `"none"` crops the middle; anything else crops at random and mirrors.
        digest: Digest of what was listed.
    """

    train: Sequence[tuple[str, int]]
    held_out: Sequence[tuple[str, int]]
    num_classes: int
    image_size: int
    augment: str
    digest: str
    channels: int = 3

    @property
    def counts(self) -> dict[str, int]:
        """Images of both splits."""
        return {"train": len(self.train), "test": len(self.held_out)}

    def facts(self, name: str) -> dict[str, Any]:
        """What a record keeps of the dataset."""
        return {
            "name": name,
            "digest": self.digest,
            "counts": self.counts,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "channels": self.channels,
        }

    def train_batch(self, step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of one step, as `VisionData.train_batch`."""
        import numpy as np

        chosen = batch_indices(len(self.train), step, batch, seed)
        draw = None if self.augment == "none" else np.random.default_rng([seed, 1, step])
        return self._decoded([self.train[place] for place in chosen], draw)

    def held_out_halves(self) -> tuple[ImageFolderData, ImageFolderData]:
        """The data with the test images of even number alone, and with those of odd number, as `VisionData` does it."""
        if len(self.held_out) < 2:
            raise BlastError("there is only one test image, which cannot be halved; take another dataset.")
        return replace(self, held_out=self.held_out[0::2]), replace(self, held_out=self.held_out[1::2])

    def training_part(self, count: int) -> ImageFolderData:
        """The data with `count` training images, not augmented, in place of the test images, as in `VisionData`."""
        return replace(self, held_out=[self.train[place] for place in spread_evenly(len(self.train), count)])

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in their order, `batch` at a time."""
        for start in range(0, len(self.held_out), batch):
            yield self._decoded(self.held_out[start : start + batch], None)

    def test(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """All test images at once, or the first `limit`; ImageNet's 50000 take 30 GB, so prefer `test_batches`."""
        return self._decoded(self.held_out[:limit], None)

    def _decoded(self, samples: Sequence[tuple[str, int]], draw: Any) -> tuple[Tensor, Tensor]:
        import torch
        from PIL import Image
        from torchvision.transforms.functional import normalize, pil_to_tensor

        images = []
        for path, _ in samples:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            side = min(image.size) * (CROP_SHARE if draw is None else draw.uniform(0.5, 1) ** 0.5)
            left, top = (
                (length - side) * (0.5 if draw is None else draw.random()) for length in (image.width, image.height)
            )
            box = (left, top, left + side, top + side)
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
            if draw is not None and draw.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images.append(normalize(pil_to_tensor(image).float() / 255, MEAN, STD))
        return torch.stack(images), torch.tensor([label for _, label in samples])
