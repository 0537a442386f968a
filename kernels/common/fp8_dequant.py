"""Converts fp8 (e4m3) tiles to the dtype of the activations, in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(q, factor, dtype: tl.constexpr, OPAQUE: tl.constexpr):
    """`q · factor` in `dtype`; exact if `factor` is a power of two. Blocks with a NaN must have a NaN as factor.

    The conversion instruction to bfloat16 runs at an eighth of the speed of others. It alone took as long as loading
    bfloat16 weights. So the bits of the e4m3 number are shifted to their places in a bfloat16. That gives the number
    times 2⁻¹²⁰, subnormals included, and the multiplication corrects the factor.
    """
    if dtype == tl.bfloat16 and OPAQUE:
        shifted = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, number;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            shr.u32 number, low, 4;
            and.b32 number, number, 0x07f007f0;
            lop3.b32 $0, low, 0x80008000, number, 0xea;
            shr.u32 number, high, 4;
            and.b32 number, number, 0x07f007f0;
            lop3.b32 $1, high, 0x80008000, number, 0xea;
            }""",
            "=r,=r,r",
            [q],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
        wide = shifted * tl.full((), 1.329227995784916e36, tl.bfloat16)
    else:
        wide = q.to(dtype)
    return wide * factor.to(dtype)
