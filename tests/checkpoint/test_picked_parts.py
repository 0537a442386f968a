"""Parts of tensors that are read from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from blast.checkpoint.weights_file import _picked


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("indices", [[0], [3], [1, 2, 3], [0, 2], [0, 1, 3], [0, 1, 2, 3]])
def test_picked_indices_are_those_and_a_view_where_they_follow_one_another(indices, dim):
    tensor = torch.arange(16).view(4, 4)
    found = _picked(tensor, dim, torch.tensor(indices))
    assert torch.equal(found, tensor.index_select(dim, torch.tensor(indices)))
    shares = found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert shares == (indices[-1] - indices[0] == len(indices) - 1)
