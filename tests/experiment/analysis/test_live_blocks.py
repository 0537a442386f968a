"""Live blocks and live hidden blocks, counted from masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from blast.benchmark.inputs.mask_file import write_mask_file
from blast.experiment.analysis.live_blocks import last_masks, live_blocks, live_by_layer

FACTS = dict.fromkeys(
    ("grid", "point", "model", "dataset", "method", "sparsity", "block", "step", "record", "date"), "x"
)


def masks():
    """Two layers with 4 hidden blocks; in layer 10 gate keeps hidden blocks 0 and 1, up 1 and 2, down 1 and 3."""

    def keep(blocks):
        return np.isin(np.arange(4), blocks)

    rows = {name: np.repeat(keep(kept)[:, None], 2, axis=1) for name, kept in (("gate", [0, 1]), ("up", [1, 2]))}
    return {
        "layers.2.mlp.up": np.ones((4, 2), bool), "layers.2.mlp.down": np.ones((2, 4), bool),
        **{f"layers.10.mlp.{name}": mask for name, mask in rows.items()},
        "layers.10.mlp.down": np.repeat(keep([1, 3])[None], 2, axis=0),
    }  # fmt: skip


def test_a_hidden_block_is_live_if_every_matrix_has_a_live_block_in_it():
    full, pruned = live_by_layer(masks(), 4)
    assert (full.layer, full.hidden, full.hidden_total) == (2, 4, 4)
    assert (pruned.layer, pruned.hidden) == (10, 1)
    assert pruned.shares == {"mlp.gate": 0.5, "mlp.up": 0.5, "mlp.down": 0.5}


def test_recorded_masks_and_those_of_a_run_are_read_alike(tmp_path):
    from safetensors.numpy import save_file

    write_mask_file(tmp_path / "recorded.safetensors", masks(), FACTS)
    steps = {f"step{step:06d}/{name}": mask.astype(np.uint8) for name, mask in masks().items() for step in (7, 30)}
    steps |= {name: np.zeros_like(mask) for name, mask in steps.items() if name.startswith("step000007")}
    save_file(steps, tmp_path / "run.safetensors")
    for file in ("recorded", "run"):
        read = last_masks(tmp_path / f"{file}.safetensors")
        assert {name: mask.tolist() for name, mask in read.items()} == {n: m.tolist() for n, m in masks().items()}


def test_what_reads_no_hidden_units_does_not_count():
    attention = {"h.0.attn": np.zeros((2, 2), bool)}
    (layer,) = live_by_layer(attention | {"h.0.mlp.up": np.ones((4, 2), bool)}, 4)
    assert layer.hidden == 4
    assert layer.shares["attn"] == pytest.approx(0.0)


def test_the_hidden_blocks_of_a_point_are_its_width_in_whole_blocks(tmp_path):
    up = np.zeros((8, 2), bool)
    up[:3] = True
    write_mask_file(tmp_path / "masks.safetensors", {"h.0.mlp.c_fc": up}, FACTS)
    point = pd.Series({"grid": "g", "hardware": "cpu", "point": "p", "model": "gpt2-nano", "block": "64x32"})
    table = pd.DataFrame()
    table.attrs["last_masks"] = {("g", "cpu", "p"): tmp_path / "masks.safetensors"}
    (layer,) = live_blocks(table, point)
    assert repr((layer.hidden, layer.hidden_total)) == "(3, 8)"
    assert live_blocks(table, point.replace("gpt2-nano", "unknown")) is None
    assert live_blocks(table, point.replace("p", "another")) is None
