"""The Conv1D of transformers is told from everything else."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D as Real

from blast.block_sparse.conv1d import is_conv1d


class Conv1D(nn.Module):
    """Has the name, and what is given."""

    def __init__(self, **attributes) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def test_the_layer_of_transformers_and_its_subclasses_are_found():
    assert is_conv1d(Real(8, 4))
    assert is_conv1d(type("FSDPConv1D", (Real,), {})(8, 4))


def test_what_lacks_its_name_its_width_or_its_matrix_is_none():
    matrix = nn.Parameter(torch.zeros(4, 8))
    assert is_conv1d(Conv1D(nf=8, weight=matrix))
    assert not is_conv1d(nn.Linear(4, 8))
    assert not is_conv1d(nn.Conv1d(4, 8, 1))
    assert not is_conv1d(Conv1D(weight=matrix))
    assert not is_conv1d(Conv1D(nf=8))
    assert not is_conv1d(Conv1D(nf=8, weight=None))
    assert not is_conv1d(Conv1D(nf=8, weight=nn.Parameter(torch.zeros(4, 8, 1))))
