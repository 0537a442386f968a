"""Datasets by name: what each states, and the images' splits and batches."""

from __future__ import annotations

import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from blast import datasets
from blast.datasets._vision.cifar import AUTHORS, CifarBinary
from blast.datasets._vision.idx import IdxImages
from blast.datasets._vision.vision_data import ImageSettings, VisionData, batch_indices
from blast.datasets.digits import TRAIN
from blast.errors import BlastError


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> VisionData:
    return datasets.get("digits").load(tmp_path_factory.mktemp("cache"))


def _images(n: int = 20, augment: str = "none") -> VisionData:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(n) % 5
    return VisionData(images, labels, images[:4], labels[:4], 5, (0.5,) * 3, (0.25,) * 3, "sha256:", augment)


def test_every_dataset_states_what_people_need_to_know():
    assert {"pystdlib", "fashion_mnist", "digits", "mnist", "cifar10", "cifar100", "imagenet", "wikitext103"} <= set(
        datasets.names()
    )
    for name in datasets.names():
        module = datasets.get(name)
        assert module.MODALITY in ("language", "classification", "vision")
        assert all((module.LABEL, module.LICENCE, module.DESCRIPTION, module.SOURCES))
        assert module.BYTES >= 0
        assert module.MODALITY == "language" or module.EVALUATION == []
        assert all(callable(getattr(module, stage)) for stage in ("fetch", "prepare", "load"))


def test_looking_at_datasets_imports_nothing_heavy():
    code = (
        "import sys; from blast import datasets as d; [d.get(n) for n in d.names()];"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'sklearn', 'tokenizers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_dataset_suggests_the_nearest_name():
    with pytest.raises(BlastError, match="did you mean 'fashion_mnist'"):
        datasets.get("fashion-mnist")


def test_the_split_of_digits_is_fixed_and_has_no_overlap(digits, tmp_path):
    assert digits.counts == {"train": TRAIN, "test": 360}
    assert datasets.get("digits").load(tmp_path).digest == digits.digest
    from sklearn.datasets import load_digits

    both = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    whole = torch.from_numpy(load_digits().data * 15).to(torch.uint8)
    assert torch.equal(both.unique(dim=0), whole.unique(dim=0))
    assert len(both) == len(whole)


def test_digits_are_normalised(digits):
    images, labels = digits.test()
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05


def test_test_batches_are_the_test_images_in_order(digits):
    images, labels = digits.test()
    parts = list(digits.test_batches(100))
    assert [len(part[1]) for part in parts] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_a_batch_depends_on_seed_and_step_alone(digits):
    late = digits.train_batch(40, 64, seed=3)
    for step in (0, 100, 39):
        digits.train_batch(step, 64, seed=3)
    again = digits.train_batch(40, 64, seed=3)
    assert torch.equal(late[0], again[0])
    assert torch.equal(late[1], again[1])
    assert not torch.equal(late[1], digits.train_batch(41, 64, seed=3)[1])
    assert not torch.equal(late[1], digits.train_batch(40, 64, seed=4)[1])


@pytest.mark.parametrize(("n", "batch"), [(20, 4), (20, 7), (5, 12)])
def test_every_epoch_sees_each_image_once(n, batch):
    steps = 3 * n
    seen = np.concatenate([batch_indices(n, step, batch, seed=1) for step in range(steps)])
    for epoch in range(steps * batch // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize("augment", ["shift", "shift_flip"])
def test_augmentation_moves_images_and_depends_on_seed_and_step_alone(augment):
    plain, moved = _images(), _images(augment=augment)
    first, again = moved.train_batch(5, 8, seed=0), moved.train_batch(5, 8, seed=0)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], plain.train_batch(5, 8, seed=0)[1])
    assert not torch.equal(first[0], plain.train_batch(5, 8, seed=0)[0])
    # What is left of a shifted image is one of its own windows.
    assert set(first[0].unique().tolist()) <= set(plain.train_batch(5, 8, seed=0)[0].unique().tolist()) | {-2.0}


def test_images_are_resized_and_their_channels_repeated():
    ramp = torch.arange(8, dtype=torch.uint8).mul(30).expand(6, 1, 8, 8).contiguous()
    labels = torch.arange(6) % 2
    plain = VisionData(ramp, labels, ramp, labels, 2, (0.5,), (0.25,), "sha256:")
    shown = VisionData(ramp, labels, ramp, labels, 2, (0.5,), (0.25,), "sha256:", resize=32, repeat_to=3)
    assert (shown.image_size, shown.channels) == (32, 3)
    batch, small = shown.train_batch(0, 4, seed=0)[0], plain.train_batch(0, 4, seed=0)[0]
    assert batch.shape == (4, 3, 32, 32)
    assert torch.equal(batch[:, 0], batch[:, 2])
    assert (batch.diff(dim=3) >= 0).all()
    assert torch.allclose(batch.mean(), small.mean(), atol=1e-4)
    assert torch.allclose(batch.amax(), small.amax(), atol=1e-4)
    assert shown.test(2)[0].shape == (2, 3, 32, 32)


def test_colour_images_cannot_be_shown_in_other_channels():
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)
    with pytest.raises(BlastError, match="images of 3 channels cannot be shown as 1"):
        VisionData(images, labels, images, labels, 2, (0.5,) * 3, (0.5,) * 3, "", repeat_to=1)
    with pytest.raises(BlastError, match="'image_size' is 0"):
        ImageSettings().batch_options({"image_size": 0})


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(BlastError, match="did you mean 'augment'"):
        ImageSettings().batch_options({"augmnt": "shift"})
    with pytest.raises(BlastError, match="did you mean 'shift'"):
        ImageSettings().batch_options({"augment": "shfit"})


def test_addresses_are_those_that_torchvision_uses():
    import torchvision.datasets

    for name in ("fashion_mnist", "mnist"):
        data = datasets.get(name)._DATA
        assert list(data.mirrors) == getattr(torchvision.datasets, data.reader).mirrors
    assert torchvision.datasets.CIFAR10.url.startswith(AUTHORS)


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    return header + values.astype(np.uint8).tobytes()


def test_idx_files_are_read_as_they_were_written(tmp_path):
    data = IdxImages(name="tiny", reader="FashionMNIST", mirrors=(), checksums={}, mean=0.5, std=0.5)
    folder = data.folder(tmp_path)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, n in (("train", 12), ("t10k", 5)):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(_idx(draw.integers(0, 256, (n, 28, 28))))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(_idx(np.arange(n) % 10))
    facts = data.prepare(tmp_path, {})
    loaded = data.load(tmp_path, {"augment": "shift"})
    assert facts["counts"] == loaded.counts == {"train": 12, "test": 5}
    assert (facts["num_classes"], facts["image_size"], facts["channels"]) == (10, 28, 1)
    assert loaded.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(loaded.train_images[0, 0].numpy(), np.random.default_rng(0).integers(0, 256, (12, 28, 28))[0])


def test_cifar_records_are_read_from_the_archive(tmp_path):
    data = CifarBinary(
        name="tiny",
        archive="tiny.tar.gz",
        checksum="",
        train=["part/train.bin"],
        test=["part/test.bin"],
        labels=2,
        num_classes=100,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    records = np.random.default_rng(0).integers(0, 100, (6, 2 + 3072)).astype(np.uint8)
    part = tmp_path / "part"
    part.mkdir()
    (part / "train.bin").write_bytes(records[:4].tobytes())
    (part / "test.bin").write_bytes(records[4:].tobytes())
    raw = tmp_path / "raw" / "tiny"
    raw.mkdir(parents=True)
    with tarfile.open(raw / "tiny.tar.gz", "w:gz") as archive:
        archive.add(part, "part")
    loaded = data.load(tmp_path)
    assert loaded.train_labels.tolist() == records[:4, 1].tolist()
    assert np.array_equal(loaded.test_images[1, 2, 31].numpy(), records[5, -32:])


def test_data_that_were_not_fetched_are_an_error(tmp_path):
    with pytest.raises(BlastError, match="fetch it first"):
        datasets.get("cifar10").load(tmp_path)
    with pytest.raises(BlastError, match="fetch it first"):
        datasets.get("fashion_mnist").load(tmp_path)


def test_a_dataset_file_that_lacks_a_part_is_named(tmp_path, monkeypatch):
    (tmp_path / "half_a_dataset.py").write_text('MODALITY = "vision"\nLABEL = "half"\n')
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    datasets._found.cache_clear()
    try:
        with pytest.raises(BlastError, match=r"half_a_dataset.py lacks LICENCE, DESCRIPTION, .*load; add it"):
            datasets.names()
    finally:
        sys.modules.pop("blast.datasets.half_a_dataset", None)
        monkeypatch.undo()
        datasets._found.cache_clear()
