"""The state of a sparsifier as JSON: the Trainer keeps the states of its callbacks in `trainer_state.json`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_json(state: dict[str, Any]) -> dict[str, Any]:
    """A result of `Sparsifier.state_dict` as plain JSON values; a mask takes one bit a block."""
    return {**state, "masks": {name: _pack(mask) for name, mask in state["masks"].items()}}


def from_json(state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    return {**state, "masks": {name: _unpack(packed) for name, packed in state["masks"].items()}}


def _pack(mask: Tensor) -> dict[str, Any]:
    bits = np.packbits(mask.numpy().reshape(-1))
    return {"shape": list(mask.shape), "bits": base64.b64encode(bits.tobytes()).decode()}


def _unpack(packed: dict[str, Any]) -> Tensor:
    rows, cols = packed["shape"]
    bits = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=rows * cols).astype(bool).reshape(rows, cols))
