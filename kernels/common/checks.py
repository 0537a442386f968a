"""Checks of operator arguments, made on every call without reading device memory.

The contents of an index (order, range, offsets that end at `nnz`) are checked once, by the code that builds it.
"""

from __future__ import annotations

import torch
from blast_kernels.common.quantize import FP8, HALVES
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_product(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, cols: int) -> None:
    """Checks the operands of `x · Wᵀ` with `W [rows · b_out, cols · b_in]`.

    Args:
        x: Activations `[…, in]`.
        values: Live blocks `[nnz, b_out, b_in]`.
        row_offsets: `[rows + 1]`, int32.
        col_indices: `[nnz]`, int32.
        cols: Block columns of `W`.

    Raises:
        ValueError: if an operand does not fit; one sentence with what was found.
    """
    _check_values(x, values)
    if x.dim() == 0 or x.shape[-1] != cols * values.shape[2]:
        raise ValueError(
            f"x is {list(x.shape)}, but its last dimension must be {cols * values.shape[2]} "
            f"({cols} block columns of {values.shape[2]})"
        )
    check_index("row_offsets", row_offsets, values)
    check_index("col_indices", col_indices, values)
    if col_indices.numel() != values.shape[0]:
        raise ValueError(f"col_indices has {col_indices.numel()} entries for {values.shape[0]} blocks in values")


def check_row_lists(
    x: Tensor, values: Tensor, row_list: Tensor, out_features: int, b_out: int, scales: Tensor | None = None
) -> None:
    """Checks the operands of a product that is described by row lists.

    Args:
        x: Activations `[…, in]`.
        values: Live blocks.
        row_list: int32 `[entries, width]`.
        out_features: Columns of the result.
        b_out: Rows of a block of the weights.
        scales: float32 `[nnz]` if the values are fp8, else None.

    Raises:
        ValueError: if an operand does not fit; one sentence with what was found.
    """
    _check_values(x, values, scales)
    if row_list.dtype != torch.int32 or row_list.dim() != 2 or not row_list.is_contiguous():
        raise ValueError(
            f"row_list must be a contiguous int32 matrix made by blast_kernels.mlp_inference.row_lists, "
            f"not {row_list.dtype} {list(row_list.shape)}"
        )
    if row_list.device != values.device:
        raise ValueError(f"row_list is on {row_list.device} and values are on {values.device}; move one of them")
    if x.dim() == 0 or x.shape[-1] % values.shape[2]:
        raise ValueError(f"x is {list(x.shape)}, but its last dimension must be a multiple of {values.shape[2]}")
    if out_features % b_out or row_list.shape[0] * b_out > out_features:
        raise ValueError(f"{row_list.shape[0]} entries of {b_out} rows do not fit {out_features} output features")


def _check_values(x: Tensor, values: Tensor, scales: Tensor | None = None) -> None:
    if values.dim() != 3:
        raise ValueError(f"values must be [nnz, b_out, b_in], not {list(values.shape)}")
    if scales is not None:
        _check_scales(x, values, scales)
    elif values.dtype == FP8:
        raise ValueError("values are torch.float8_e4m3fn and have no scales; pass those that quantize_blocks gave")
    elif values.dtype not in DTYPES:
        raise ValueError(f"values are {values.dtype}; use one of float32, float16, bfloat16, float64")
    elif x.dtype != values.dtype:
        raise ValueError(f"x is {x.dtype} and values are {values.dtype}; convert one of them so that they agree")
    if not values.is_contiguous():
        raise ValueError("values must be contiguous; call values.contiguous() once, when the matrix is built")
    if x.device != values.device:
        raise ValueError(f"x is on {x.device} and values are on {values.device}; move one of them")


def _check_scales(x: Tensor, values: Tensor, scales: Tensor) -> None:
    if values.dtype != FP8:
        raise ValueError(f"values are {values.dtype}; only torch.float8_e4m3fn values have scales, pass none")
    if x.dtype not in HALVES:
        raise ValueError(f"x is {x.dtype}; torch.float8_e4m3fn values need x in float16 or bfloat16")
    fits = list(scales.shape) == [values.shape[0]] and scales.dtype == torch.float32 and scales.is_contiguous()
    if not fits or scales.device != values.device:
        raise ValueError(
            f"scales must be a contiguous float32 vector of {values.shape[0]} entries on {values.device}, "
            f"not {scales.dtype} {list(scales.shape)} on {scales.device}"
        )


def check_index(name: str, index: Tensor, values: Tensor) -> None:
    """Checks that an index tensor is int32, one-dimensional, contiguous and on the device of `values`."""
    if index.dtype != torch.int32 or index.dim() != 1 or not index.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous int32 vector, not {index.dtype} {list(index.shape)}"
            f"{'' if index.is_contiguous() else ', not contiguous'}"
        )
    if index.device != values.device:
        raise ValueError(f"{name} is on {index.device} and values are on {values.device}; move one of them")


def check_bias(bias: Tensor | None, out_features: int, x: Tensor) -> None:
    """Checks that a bias, if there is one, is `[out_features]` in the dtype and on the device of `x`."""
    if bias is None:
        return
    if list(bias.shape) != [out_features] or bias.dtype != x.dtype or bias.device != x.device:
        raise ValueError(
            f"bias must be [{out_features}] {x.dtype} on {x.device}, "
            f"not {list(bias.shape)} {bias.dtype} on {bias.device}"
        )
    if not bias.is_contiguous():
        raise ValueError("bias must be contiguous; call bias.contiguous() once, when the layer is built")
