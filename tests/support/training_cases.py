"""Random sparse MLPs for the tests of the training kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from blast_kernels.common.batched_copy import batched_copy
from blast_kernels.mlp_training.index_lists import IndexLists, complete_arrays, index_lists_on_device
from inference_cases import mask_of, matrix_of
from torch import Tensor

ACTIVATIONS = {
    "none": lambda t: t,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
}


class Mlp(NamedTuple):
    """Operands of `block_sparse_mlp_training`, and the same matrices in dense form.

    Attributes:
        gate_up: Blocks of gate and up, or of up alone.
        down: Blocks of the down projection.
        up_bias: None with a gate.
        down_bias: None with a gate.
        lists: The lists that the kernels read.
        dense_gate_up: Dense gate and up, or up alone.
        dense_down: Dense down projection.
        masks: Masks of all matrices, the down projection last.
        complete_lists: The lists that `dense_gradients` reads.
    """

    gate_up: list[Tensor]
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    lists: IndexLists
    dense_gate_up: list[Tensor]
    dense_down: Tensor
    masks: list[Tensor]
    complete_lists: list[Tensor]


def mlp_of(
    gate: str,
    patterns: tuple[str, str],
    b_hidden: int,
    b_in: int,
    b_out: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    grid: tuple[int, int, int] = (4, 3, 3),
    members: tuple[int, int] = (2, 2),
) -> Mlp:
    """An MLP with `grid` = hidden, input and output blocks; `patterns` of the masks of gate-up and down."""
    rows, cols, outs = grid
    masks = [mask_of(patterns[0], rows, cols, seed, 0.5) for seed in (1, 2)]
    masks = {"none": masks[:1], "tied": masks[:1] * 2, "untied": masks}[gate]
    down_mask = mask_of(patterns[1], outs, rows, 3, 0.5)
    gate_up = [matrix_of(mask, b_hidden, b_in, dtype, device, seed) for seed, mask in enumerate(masks)]
    down = matrix_of(down_mask, b_out, b_hidden, dtype, device, 9)
    generator = torch.Generator().manual_seed(5)
    up_bias, down_bias = None, None
    if gate == "none":
        up_bias = torch.randn(rows * b_hidden, generator=generator).to(device, dtype)
        down_bias = torch.randn(outs * b_out, generator=generator).to(device, dtype)
    indices = [tuple(tensor.cpu().numpy() for tensor in matrix.index) for matrix in (*gate_up, down)]
    complete_lists = batched_copy(complete_arrays([(indices[:-1], indices[-1])], gate == "tied")[0], device)
    lists = index_lists_on_device([matrix.index for matrix in gate_up], down.index, cols, gate == "tied", members)
    return Mlp(
        [matrix.values for matrix in gate_up], down.values, up_bias, down_bias, lists,
        [matrix.dense for matrix in gate_up], down.dense, [*masks, down_mask], complete_lists,
    )  # fmt: skip


def dense_mlp(x: Tensor, gate_up: list[Tensor], down: Tensor, biases: tuple, activation: str) -> Tensor:
    """The dense MLP."""
    hidden = ACTIVATIONS[activation](F.linear(x, gate_up[0], biases[0]))
    hidden = hidden * F.linear(x, gate_up[1]) if len(gate_up) == 2 else hidden
    return F.linear(hidden, down, biases[1])


def live_blocks(dense: Tensor, mask: Tensor, b_out: int, b_in: int) -> Tensor:
    """The blocks of a dense matrix at a mask: `[nnz, b_out, b_in]`."""
    blocks = dense.view(mask.shape[0], b_out, mask.shape[1], b_in).transpose(1, 2)
    return blocks[mask.to(dense.device)]
