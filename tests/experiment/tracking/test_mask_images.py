"""Images of masks show each block at its position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from blast.experiment.tracking.mask_images import DEAD, LIVE, draw_masks


def test_an_image_shows_each_block_at_its_position(tmp_path: Path) -> None:
    mask = np.zeros((2, 4), np.uint8)
    mask[0, 3] = 1
    save_file({"step000007/m": mask}, tmp_path / "m.safetensors")
    over_time, last = draw_masks(tmp_path / "m.safetensors", tmp_path / "out")
    image = np.array(Image.open(over_time).convert("RGB"))
    live, dead = (np.argwhere((image == colour).all(axis=2)) for colour in (LIVE, DEAD))
    assert len(dead) == 7 * len(live)
    assert live[:, 1].min() > np.median(dead[:, 1])
    assert live[:, 0].max() < dead[:, 0].max()
    assert Image.open(last).size[0] > 0


def test_images_of_many_large_masks_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (416, 128)
    masks = {
        f"step{step:06d}/h.{i}.up": (rng.random(shape) < 0.05).astype(np.uint8) for step in (0, 9) for i in range(20)
    }
    save_file(masks, tmp_path / "m.safetensors")
    for file in draw_masks(tmp_path / "m.safetensors", tmp_path / "out"):
        assert max(Image.open(file).size) < 6000
        assert file.stat().st_size < 2_000_000
