"""How many blocks of each matrix, and how many hidden blocks of each MLP, the last masks of a point keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from blast import architectures
from blast.benchmark.inputs.mask_file import read_mask_file
from blast.experiment.records.masks import read_masks

Masks = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LiveBlocks:
    """What one layer keeps.

    Attributes:
        layer: Its number in the names of its matrices.
        shares: Share of live blocks by matrix, named as within the layer (`mlp.c_fc`).
        hidden: Hidden blocks with a live block in every matrix of the MLP.
        hidden_total: Hidden blocks in all.
    """

    layer: int
    shares: dict[str, float]
    hidden: int
    hidden_total: int


def last_masks(file: Path) -> dict[str, np.ndarray]:
    """The last mask of each matrix, bool `[out, in]` over blocks, from a recorded file or from that of a point.

    Raises:
        BlastError: if the file is damaged.
    """
    with safe_open(file, "numpy") as stored:
        recorded = "blast_masks" in (stored.metadata() or {})
    if recorded:
        return read_mask_file(file).masks
    return {name: history[max(history)] for name, history in read_masks(file).items()}


def live_by_layer(masks: Masks, hidden_total: int) -> list[LiveBlocks]:
    """Counts live blocks layer by layer.

    Args:
        masks: By matrix name, bool `[out, in]` over blocks. Those with `hidden_total` rows make the hidden units, the
            others read them.
        hidden_total: Hidden blocks of an MLP.

    Example:
        >>> up, down = np.array([[True], [True], [False]]), np.array([[True, False, True]])
        >>> live_by_layer({"h.0.up": up, "h.0.down": down}, 3)[0].hidden
        1
    """
    by_layer: dict[int, dict[str, np.ndarray]] = {}
    for name, mask in masks.items():
        match = re.search(r"\d+", name)
        layer = int(match.group()) if match else 0
        short = name[match.end() :].lstrip(".") if match else name
        by_layer.setdefault(layer, {})[short] = mask
    found = []
    for layer, matrices in sorted(by_layer.items()):
        alive = np.ones(hidden_total, dtype=bool)
        for mask in matrices.values():
            axis = 1 if mask.shape[0] == hidden_total else 0
            if mask.shape[1 - axis] == hidden_total:
                alive &= mask.any(axis=axis)
        shares = {name: float(mask.mean()) for name, mask in matrices.items()}
        found.append(LiveBlocks(layer, shares, int(alive.sum()), hidden_total))
    return found


def live_blocks(table: pd.DataFrame, point: pd.Series) -> list[LiveBlocks] | None:
    """The live blocks of a point of the table; None without masks, or of an unknown architecture.

    Args:
        table: As `load_table` gives it; `attrs["last_masks"]` has the files.
        point: A row of the point: `grid`, `hardware`, `point`, `model` and `block`.
    """
    file = table.attrs.get("last_masks", {}).get((point["grid"], point["hardware"], point["point"]))
    if file is None or point["model"] not in architectures.names():
        return None
    side = int(str(point["block"]).partition("x")[0])
    return live_by_layer(last_masks(file), architectures.get(point["model"]).shape.ffn // side)
