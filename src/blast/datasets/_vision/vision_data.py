"""Labelled images in memory, with training batches that depend on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from blast.errors import BlastError
from blast.settings import Count, Place, updated

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Torchvision's usual padding for CIFAR is 4 pixels of 32.
SHIFT_SHARE = 1 / 8
PLACE = Place("data setting")


@dataclass(frozen=True)
class ImageSettings:
    """Settings of an image dataset.

    Attributes:
        augment: `shift` moves training images by some pixels; `shift_flip` mirrors half of them too.
        image_size: Side that images are resized to, for models with published weights; without it images keep theirs.
        channels: Number of channels that grey images are repeated to; without it they keep one.
    """

    augment: Literal["none", "shift", "shift_flip"] = "none"
    image_size: Count | None = None
    channels: Count | None = None

    def batch_options(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """These settings with the given ones over them, as `VisionData` takes them.

        Raises:
            BlastError: for an unknown setting or a wrong value.
        """
        filled = updated(self, given, PLACE)
        return {"augment": filled.augment, "resize": filled.image_size, "repeat_to": filled.channels}


@dataclass(frozen=True)
class VisionData:
    """Images with labels.

    Attributes:
        train_images: uint8 `[n, channels, side, side]`.
        train_labels: int64 `[n]`.
        test_images: uint8, likewise.
        test_labels: int64, likewise.
        num_classes: Number of classes.
        mean: Of the training pixels scaled to [0, 1], by channel.
        std: Likewise.
        digest: `"sha256:…"` of everything above that was read.
        augment: As in `ImageSettings`.
        resize: Side that the images of a batch are resized to; None leaves them as they are.
        repeat_to: Number of channels that grey images are repeated to; None leaves them as they are.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    augment: str = "none"
    resize: int | None = None
    repeat_to: int | None = None

    def __post_init__(self) -> None:
        stored = self.train_images.shape[1]
        if len(self.mean) != stored or len(self.std) != stored:
            raise BlastError(f"{stored} channels need as many means and deviations, not {self.mean}, {self.std}.")
        if stored != 1 and self.repeat_to not in (None, stored):
            raise BlastError(f"images of {stored} channels cannot be shown as {self.repeat_to}; leave 'channels' out.")

    @property
    def counts(self) -> dict[str, int]:
        """Images of both splits."""
        return {"train": len(self.train_labels), "test": len(self.test_labels)}

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.resize or self.train_images.shape[-1]

    @property
    def channels(self) -> int:
        """Colour channels."""
        return self.repeat_to or self.train_images.shape[1]

    def train_batch(self, step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of one step: every epoch sees each image once, in an order of its own.

        Args:
            step: Counted from 0.
            batch: Images a batch.
            seed: Seed of order and augmentation.

        Returns:
            Normalised float32 images `[batch, channels, side, side]` and int64 labels `[batch]`.
        """
        import numpy as np
        import torch

        index = torch.from_numpy(batch_indices(len(self.train_labels), step, batch, seed))
        images = self._augmented(self.train_images[index], np.random.default_rng([seed, 1, step]))
        return self._normalised(images), self.train_labels[index]

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

    def held_out_halves(self) -> tuple[VisionData, VisionData]:
        """The same data, once with the test images of even number alone, once with those of odd number.

        Returns:
            The data for validation and the data for the test. The images are counted from 0.

        Raises:
            BlastError: if there is only one.
        """
        if len(self.test_labels) < 2:
            raise BlastError("there is only one test image, which cannot be halved; take another dataset.")
        even, odd = (
            replace(self, test_images=self.test_images[first::2], test_labels=self.test_labels[first::2])
            for first in (0, 1)
        )
        return even, odd

    def training_part(self, count: int) -> VisionData:
        """The same data with `count` training images in place of the test images, to measure what a model has learnt.

        They are spread evenly over all; a larger count takes all of them.
        """
        chosen = spread_evenly(len(self.train_labels), count)
        return replace(self, test_images=self.train_images[chosen], test_labels=self.train_labels[chosen])

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in their order, normalised, `batch` at a time."""
        for start in range(0, len(self.test_labels), batch):
            part = slice(start, start + batch)
            yield self._normalised(self.test_images[part]), self.test_labels[part]

    def test(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """All test images or the first `limit`, normalised, and their labels."""
        return self._normalised(self.test_images[:limit]), self.test_labels[:limit]

    def _normalised(self, images: Tensor) -> Tensor:
        import torch

        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        pixels = (images.float() / 255 - mean) / std
        if self.resize and self.resize != pixels.shape[-1]:
            side = (self.resize, self.resize)
            pixels = torch.nn.functional.interpolate(pixels, side, mode="bilinear", antialias=True)
        return pixels.expand(-1, self.repeat_to, -1, -1) if self.repeat_to else pixels

    def _augmented(self, images: Tensor, draw: Any) -> Tensor:
        import torch

        if self.augment == "none":
            return images
        batch, _, side, _ = images.shape
        reach = max(1, round(side * SHIFT_SHARE))
        padded = torch.nn.functional.pad(images, (reach, reach, reach, reach))
        top, left = (torch.from_numpy(draw.integers(0, 2 * reach + 1, batch)) for _ in range(2))
        if self.augment == "shift_flip":
            flipped = torch.from_numpy(draw.random(batch) < 0.5)
            padded = torch.where(flipped.view(-1, 1, 1, 1), padded.flip(3), padded)
        rows = (top.view(-1, 1) + torch.arange(side)).view(batch, 1, side, 1)
        columns = (left.view(-1, 1) + torch.arange(side)).view(batch, 1, 1, side)
        image = torch.arange(batch).view(-1, 1, 1, 1)
        channel = torch.arange(images.shape[1]).view(1, -1, 1, 1)
        return padded[image, channel, rows, columns]


def batch_indices(n: int, step: int, batch: int, seed: int) -> np.ndarray:
    """Which of `n` images a step sees, int64 `[batch]`: every epoch is a permutation of its own."""
    import numpy as np

    places = np.arange(step * batch, (step + 1) * batch)
    chosen = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(places // n):
        here = places // n == epoch
        chosen[here] = _order(n, seed, int(epoch))[places[here] % n]
    return chosen


def spread_evenly(n: int, count: int) -> np.ndarray:
    """`count` of `n` numbers, spread evenly; all if `count` is larger."""
    import numpy as np

    wanted = min(count, n)
    return np.arange(wanted) * n // wanted


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the images in one epoch; two are kept, as a batch may lie on a border."""
    import numpy as np

    return np.random.default_rng([seed, 0, epoch]).permutation(n)
