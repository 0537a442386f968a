"""The formulas of the fast activations, evaluated in float64; the assembly itself needs a GPU."""

from __future__ import annotations

import torch
from blast_kernels.common.epilogue import GELU_A, GELU_B, GELU_C, GELU_END
from torch.nn import functional as F


def test_the_fitted_tanh_form_of_gelu_is_off_by_less_than_bfloat16_rounding():
    a, b, c, end = (constant.value for constant in (GELU_A, GELU_B, GELU_C, GELU_END))
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    square = (x * x).clamp(max=end)
    quick = 0.5 * x * (1 + torch.tanh(x * (a + square * (b + square * c))))
    error = (quick - F.gelu(x)).abs()
    assert error.max() < 3e-5
    # The published tanh form has an error about twenty times as large.
    assert (F.gelu(x, approximate="tanh") - F.gelu(x)).abs().max() > 10 * error.max()
