"""Before an evaluation, no matrix that is recorded as sparse may exist as a dense weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast.errors import BlastError
from blast.evaluation.sparse_state import require_sparse_state

NAMES = ("mlp.up", "mlp.down")


class Blocks(nn.Module):
    """Stands for a linear layer in its sparse state: live blocks, index, bias."""

    def __init__(self, out_features: int, in_features: int, block: int = 4) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.values = nn.Parameter(torch.randn(3, block, block))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.register_buffer("col_indices", torch.zeros(3, dtype=torch.int32))


def dense() -> nn.Module:
    return nn.ModuleDict(
        {"mlp": nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}), "head": nn.Linear(8, 5)}
    )


def sparse() -> nn.Module:
    model = dense()
    model["mlp"] = nn.ModuleDict({"up": Blocks(16, 8), "down": Blocks(8, 16)})
    return model


def test_a_model_in_its_sparse_state_passes() -> None:
    require_sparse_state(sparse(), NAMES)
    require_sparse_state(dense(), ())


def test_a_dense_model_is_refused_and_the_matrix_named() -> None:
    with pytest.raises(BlastError, match=r"'mlp\.up' .* dense weight \[16, 8\] at 'mlp\.up\.weight'"):
        require_sparse_state(dense(), NAMES)


def test_one_matrix_left_dense_is_enough_to_refuse() -> None:
    model = sparse()
    model["mlp"]["down"] = nn.Linear(16, 8)
    with pytest.raises(BlastError, match=r"'mlp\.down' .* dense"):
        require_sparse_state(model, {name: torch.ones(1) for name in NAMES})


def _as_buffer(layer: nn.Module, weight: torch.Tensor) -> None:
    layer.register_buffer("cache", weight, persistent=False)


def _as_attribute(layer: nn.Module, weight: torch.Tensor) -> None:
    layer.cache = weight


def _in_a_hidden_module(layer: nn.Module, weight: torch.Tensor) -> None:
    hidden = nn.Linear(8, 16)
    object.__setattr__(layer, "_template", hidden)


@pytest.mark.parametrize("hide", [_as_buffer, _as_attribute, _in_a_hidden_module])
def test_a_dense_copy_kept_beside_the_blocks_is_found(hide) -> None:
    model = sparse()
    hide(model["mlp"]["up"], torch.randn(16, 8))
    with pytest.raises(BlastError, match=r"'mlp\.up' .* dense weight"):
        require_sparse_state(model, NAMES)


@pytest.mark.parametrize("shape", [(16, 8), (8, 16)])
def test_a_dense_copy_kept_by_the_mlp_around_is_found_in_either_orientation(shape) -> None:
    model = sparse()
    model["mlp"].register_buffer("cache", torch.randn(shape))
    with pytest.raises(BlastError, match=r"at 'mlp\.cache'"):
        require_sparse_state(model, NAMES)


def test_a_matrix_that_is_missing_or_holds_nothing_is_refused() -> None:
    with pytest.raises(BlastError, match="no module of that name"):
        require_sparse_state(sparse(), ["mlp.gate"])
    model = sparse()
    model["mlp"]["up"] = nn.Identity()
    with pytest.raises(BlastError, match="holds no blocks"):
        require_sparse_state(model, NAMES)


def test_a_model_passes_once_it_is_converted_and_not_before() -> None:
    from blast.model.convert import to_sparse

    model = dense()
    masks = {"mlp.up": torch.eye(4, 2).bool(), "mlp.down": torch.eye(2, 4).bool()}
    with pytest.raises(BlastError, match=r"'mlp\.up' .* dense weight \[16, 8\]"):
        require_sparse_state(model, masks)
    require_sparse_state(to_sparse(model, masks, drop=True), masks)
