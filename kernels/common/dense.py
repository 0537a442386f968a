"""Dense pieces in plain PyTorch, from which the references are built."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_dense(values: Tensor, row_offsets: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """The dense matrix of a block-CSR matrix.

    Args:
        values: Live blocks `[nnz, b_out, b_in]`.
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        cols: Block columns of the matrix.

    Returns:
        `[rows · b_out, cols · b_in]`, zero where no block is live.
    """
    b_out, b_in = values.shape[1:]
    rows = row_offsets.numel() - 1
    tiles = values.new_zeros(rows, cols, b_out, b_in)
    tiles[block_rows(row_offsets), col_indices.tolist()] = values
    return tiles.transpose(1, 2).reshape(rows * b_out, cols * b_in)


def apply_activation(x: Tensor, name: str) -> Tensor:
    """`silu`, `gelu` (exact), `gelu_tanh` or `none` of `x`.

    Raises:
        ValueError: for any other name.
    """
    if name == "silu":
        return F.silu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "none":
        return x
    raise ValueError(f"activation {name!r} is unknown; use one of silu, gelu, gelu_tanh, none")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a reference multiplies and adds: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_rows(row_offsets: Tensor) -> list[int]:
    """Block row of each live block."""
    lengths = row_offsets.diff().tolist()
    return [row for row, length in enumerate(lengths) for _ in range(length)]
