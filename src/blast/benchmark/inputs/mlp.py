"""Size and masks of a timed MLP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MlpSize(NamedTuple):
    """Size of a timed MLP.

    Attributes:
        hidden: Width of the model.
        ffn: Inner width.
        gated: Whether it has a gate.
        activation: `silu`, `gelu` or `gelu_tanh`.
        bias: Whether both layers have a bias.
        block: `[out, in]` of a block of gate and up, and of the down projection unless `transposed_down`.
        dtype: Of weights and activations.
        transposed_down: Whether blocks of the down projection are `[in, out]`. Then all matrices split the hidden
            activations alike.
    """

    hidden: int
    ffn: int
    gated: bool
    activation: str
    bias: bool
    block: tuple[int, int]
    dtype: torch.dtype
    transposed_down: bool = False

    @property
    def down_block(self) -> tuple[int, int]:
        """`[out, in]` of a block of the down projection."""
        return self.block[::-1] if self.transposed_down else self.block


class MlpMasks(NamedTuple):
    """Masks of one MLP, bool `[out / b_out, in / b_in]`; `gate` is None if the MLP has no gate."""

    up: Tensor
    down: Tensor
    gate: Tensor | None
