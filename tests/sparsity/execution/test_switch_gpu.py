"""The switch on a GPU, where the sparse state runs by the kernels."""

from __future__ import annotations

import pytest
import torch
from switch_cases import sparsify, steps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
@pytest.mark.parametrize(("autocast", "rtol"), [(False, 1e-4), (True, 1e-2)])
def test_loss_curves_agree_across_the_switch(name, autocast, rtol):
    masked = sparsify(name, device="cuda", execution="masked")
    ours = sparsify(name, device="cuda", execution="sparse", break_even=0.6)
    expected, losses = steps(masked, autocast=autocast), steps(ours, autocast=autocast)
    assert ours.execution == "sparse"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=rtol, atol=0)


def test_auto_switches_where_the_kernels_are_faster():
    ours = sparsify("gpt2-nano", device="cuda", execution="auto", sparsity=0.95, hold=0.1)
    steps(ours)
    assert ours.execution == "sparse"
