"""Block values in fp8 (e4m3) with one scale a block: weights as the decode kernels can read them, one byte each.

`w ≈ q · scale`. The scales are powers of two, so that `q · scale` is exact in float16 and bfloat16 and a kernel may
multiply before its dot product: the only error is that of rounding `w / scale` to the 3 bits e4m3 has after the leading
one. e4m3 (4 bits of exponent, no infinity) reaches from 2⁻⁶ (subnormal: 2⁻⁹) to 448.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
# What fp8 weights are multiplied with.
HALVES = (torch.float16, torch.bfloat16)
# Smallest scale, as a power of two, for which the smallest subnormal of e4m3 (2⁻⁹ · scale) is still a number of the
# dtype: below, `q · scale` would be rounded. In float16 that grid is float16's own, so nothing is lost by it.
LEAST_EXPONENT = {torch.float16: -15, torch.bfloat16: -117, torch.float32: -117}


def quantize_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks in fp8, the largest magnitude of each between 224 and 448 times its scale.

    An element of at least 2⁻⁶ · scale is off by at most 1/16 of itself, a smaller one by at most 2⁻¹⁰ · scale; within a
    block that is where magnitudes are more than 14,336 apart. A block with NaN or infinity gets NaN for its scale: the
    kernels move bits and know no NaN of e4m3.

    Args:
        values: `[nnz, rows, b_in]`, float16, bfloat16 or float32; in the dtype of the activations, as the kernels
            have it (`pack_tied` for gate and up together).

    Returns:
        `q [nnz, rows, b_in]`, float8_e4m3fn, and `scales [nnz]`, float32; the scale of a block of zeros is 1.

    Raises:
        ValueError: for another dtype or number of dimensions.
    """
    if values.dtype not in LEAST_EXPONENT or values.dim() != 3:
        raise ValueError(
            f"values are {values.dtype} {list(values.shape)}; fp8 blocks are made of [nnz, rows, b_in] in float16, "
            f"bfloat16 or float32"
        )
    largest = values.abs().amax(dim=(1, 2)).float()
    # 448 is 0.875 · 2⁹; `largest` is mantissa · 2^exponent with a mantissa from 0.5 to 1.
    mantissa, exponent = torch.frexp(largest)
    exponent = (exponent - 9 + (mantissa > 0.875)).clamp(min=LEAST_EXPONENT[values.dtype])
    exponent = torch.where(largest.isfinite() & (largest > 0), exponent, 0)
    # From its bits: a power function need not be exact.
    scales = ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
    scales = torch.where(largest.isfinite(), scales, float("nan"))
    # The last sixteenth of the dtype's range would be rounded up, out of it.
    limit = torch.finfo(values.dtype).max * 15 / 16
    wide = torch.where(values.isfinite(), values.float().clamp(-limit, limit), float("nan"))
    return (wide / scales.nan_to_num(1.0)[:, None, None]).to(FP8).contiguous(), scales


def dequantize(q: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`q · scale`, exact in float32 and in the dtype the blocks were made from.

    Args:
        q: `[nnz, rows, b_in]`, float8_e4m3fn.
        scales: `[nnz]`, float32.
        dtype: Of the result.
    """
    return (q.float() * scales[:, None, None]).to(dtype)
