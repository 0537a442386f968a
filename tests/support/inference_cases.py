"""Random block-sparse matrices for the kernel tests, with every pattern that has broken a kernel somewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from blast_kernels.mlp_inference.row_lists import gated_row_list, plain_row_list
from torch import Tensor

PATTERNS = ("uniform", "skewed_rows", "banded", "empty_rows", "empty_columns", "full", "one_block")


class Matrix(NamedTuple):
    """A block-CSR matrix and its dense form.

    Attributes:
        dense: `[out, in]`.
        values: `[nnz, b_out, b_in]`.
        index: `row_offsets, col_indices` of the matrix.
        t_index: `t_offsets, t_indices, t_order` of its transpose.
    """

    dense: Tensor
    values: Tensor
    index: tuple[Tensor, Tensor]
    t_index: tuple[Tensor, Tensor, Tensor]


def mask_of(pattern: str, rows: int, cols: int, seed: int = 0, density: float = 0.3) -> Tensor:
    """A block mask `[rows, cols]`, True = live."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, cols, generator=generator) < density
    if pattern == "skewed_rows":
        mask[0] = True
    elif pattern == "banded":
        mask = (torch.arange(rows)[:, None] * cols // rows - torch.arange(cols)[None, :]).abs() < 2
    elif pattern == "empty_rows":
        mask[::2] = False
    elif pattern == "empty_columns":
        mask[:, ::2] = False
    elif pattern == "full":
        mask[:] = True
    elif pattern == "one_block":
        mask[:] = False
        mask[rows // 2, cols - 1] = True
    return mask


def index_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`row_offsets [rows + 1]` and `col_indices [nnz]` of a block mask, int32."""
    offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int32)
    offsets[1:] = mask.sum(1).cumsum(0)
    return offsets, mask.nonzero()[:, 1].int()


def matrix_of(
    mask: Tensor, b_out: int, b_in: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Matrix:
    """Random values on the live blocks of `mask`, scaled so that a product with unit inputs stays near one."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = mask.shape
    nnz = int(mask.sum())
    scale = (max(1, int(mask.sum(1).max())) * b_in) ** -0.5
    values = (torch.randn(nnz, b_out, b_in, generator=generator) * scale).to(dtype)
    tiles = torch.zeros(rows, cols, b_out, b_in, dtype=dtype)
    tiles[mask] = values
    offsets, indices = index_of(mask)
    position = torch.full(mask.shape, -1, dtype=torch.int32)
    position[mask] = torch.arange(nnz, dtype=torch.int32)
    t_offsets, t_indices = index_of(mask.t())
    t_order = position.t()[mask.t()].contiguous()
    dense = tiles.transpose(1, 2).reshape(rows * b_out, cols * b_in)
    move = [t.to(device) for t in (dense, values, offsets, indices, t_offsets, t_indices, t_order)]
    return Matrix(move[0], move[1], (move[2], move[3]), (move[4], move[5], move[6]))


def relative_error(out: Tensor, expected: Tensor) -> float:
    """`‖out − expected‖ / ‖expected‖` in float64; NaN counts as infinite, two zeros as equal."""
    difference = (out.double() - expected.double()).norm().item()
    norm = expected.double().norm().item()
    if difference != difference:
        return float("inf")
    return difference / norm if norm else difference


class GateUp(NamedTuple):
    """Operands of one product with epilogue, and the dense matrices it stands for (gate and up, or one).

    Attributes:
        dense: The dense matrices.
        values: Blocks of the first of them.
        row_list: Row list of the product.
        up: Blocks of the up projection; None without a gate.
    """

    dense: list[Tensor]
    values: Tensor
    row_list: Tensor
    up: Tensor | None


def gate_up_of(
    gate: str,
    masks: list[Tensor],
    b_out: int,
    b_in: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    live_rows: Tensor | None = None,
) -> GateUp:
    """A product with a gate or without: one mask for `none` and `tied`, gate and up masks for `untied`."""
    if gate == "tied":
        masks = [masks[0], masks[0]]
    matrices = [matrix_of(mask, b_out, b_in, dtype, seed=seed) for seed, mask in enumerate(masks)]
    if gate == "untied":
        row_list = gated_row_list(*matrices[0].index, *matrices[1].index, live_rows)
    else:
        row_list = plain_row_list(*matrices[0].index, live_rows)
    dense = [matrix.dense.to(device) for matrix in matrices]
    up = None if gate == "none" else matrices[1].values.to(device)
    return GateUp(dense, matrices[0].values.to(device), row_list.to(device), up)


def dense_gate_up(x: Tensor, dense: list[Tensor], bias: Tensor | None, activation: str) -> Tensor:
    """The dense form of a product with epilogue, in float64."""
    functions = {
        "none": lambda t: t,
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    }
    wide = None if bias is None else bias.double()
    out = functions[activation](F.linear(x.double(), dense[0].double(), wide))
    return out * F.linear(x.double(), dense[1].double()) if len(dense) == 2 else out
