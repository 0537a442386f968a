"""Masks of points are read by matrix and step, in the order of the layers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from blast.errors import BlastError
from blast.experiment.records.masks import read_masks


def test_layer_ten_comes_after_layer_nine_and_step_ten_after_step_nine(tmp_path):
    names = [f"h.{layer}.mlp.{matrix}" for layer in (1, 2, 9, 10, 11) for matrix in ("c_fc", "c_proj")]
    mask = np.eye(2, dtype=np.uint8)
    tensors = {f"step{step}/{name}": mask * (step % 2) for name in reversed(names) for step in (10, 9, 100)}
    save_file(tensors, tmp_path / "masks.safetensors")
    found = read_masks(tmp_path / "masks.safetensors")
    assert list(found) == names
    assert list(found["h.1.mlp.c_fc"]) == [9, 10, 100]
    assert found["h.1.mlp.c_fc"][9].tolist() == [[True, False], [False, True]]
    assert not found["h.1.mlp.c_fc"][10].any()


def test_words_before_a_number_come_by_the_alphabet(tmp_path):
    names = ["a.2.x", "a.10.x", "b.1.x", "b.1.x.2", "head"]
    save_file({f"step1/{name}": np.ones((1, 1), np.uint8) for name in reversed(names)}, tmp_path / "m.safetensors")
    assert list(read_masks(tmp_path / "m.safetensors")) == names


@pytest.mark.parametrize(("name", "shape"), [("step1", (2, 2)), ("1/h.0", (2, 2)), ("step1/h.0", (4,))])
def test_other_tensors_are_refused(tmp_path, name, shape):
    save_file({name: np.ones(shape, np.uint8)}, tmp_path / "m.safetensors")
    with pytest.raises(BlastError, match="is no mask called step…/<matrix>; run it again"):
        read_masks(tmp_path / "m.safetensors")
