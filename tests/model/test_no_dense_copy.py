"""Finding, fusing and measuring a sparse model makes no dense matrix: its weight is computed at each access."""

from __future__ import annotations

import copy

import pytest
import torch
from sparse_pairs import inputs_of, pair
from sparsity_models import MODELS

import blast
from blast.block_sparse.csr import BlockCSR
from blast.layers.block_linear import BlockLinear


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_sparse_model_is_used_without_a_dense_matrix(kind: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sparse, masks = pair(kind)
    made = []
    to_dense = BlockCSR.to_dense
    monkeypatch.setattr(BlockCSR, "to_dense", lambda self: made.append(self) or to_dense(self))
    blast.save(sparse, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    assert blast.find_mlps(loaded)
    assert blast.model_bytes(loaded).mlp > 0
    assert blast.masks_of(loaded).keys() == masks.keys()
    fused = blast.fuse(copy.deepcopy(loaded))
    with torch.inference_mode():
        fused(inputs_of(kind))
        loaded(inputs_of(kind))
    blast.model_bytes(fused)
    blast.save(blast.unfuse(fused), tmp_path / "again")
    assert not made
    assert isinstance(
        next(module for module in loaded.modules() if isinstance(module, BlockLinear)).weight, torch.Tensor
    )
    assert made, "the weight itself is dense"
