"""The sparsity that is reported is the share of blocks that are empty, of each matrix and of the whole."""

from __future__ import annotations

import torch
from torch import nn

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier


def test_each_matrix_and_the_whole_report_the_share_of_their_empty_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = SparsifyConfig(sparsity=0.75, block=(4, 8), steps=4, update_every=1, targets=("0", "2"))
    sparsifier = Sparsifier(model, optimizer, config)
    for _ in range(4):
        model(torch.ones(2, 16)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    report = sparsifier.report()
    assert set(report["matrices"]) == {"0", "2"}
    for name, facts in report["matrices"].items():
        mask = sparsifier.masks[name]
        assert facts["shape"] == list(model.get_submodule(name).weight.shape)
        assert (facts["block"], facts["blocks"], facts["live"]) == ([4, 8], 16, int(mask.sum()))
        assert facts["achieved"] == 1 - int(mask.sum()) / 16 == 0.75
        assert facts["target"] == 0.75
    assert (report["target"], report["achieved"]) == (0.75, 0.75)


def test_a_trained_point_records_the_share_of_its_empty_blocks():
    from types import SimpleNamespace

    from blast.experiment.run.prune import _sparsity

    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    small, large = torch.tensor([[True, False], [False, False]]), torch.ones(4, 2, dtype=torch.bool)
    large[1:, 0] = False
    facts = _sparsity(SimpleNamespace(block=(4, 4), sparsity=0.6), {"0": large, "1": small[:1].repeat(1, 2)}, model)
    assert facts["matrices"]["0"]["achieved"] == 3 / 8
    assert facts["matrices"]["0"]["shape"] == [16, 8]
    assert facts["matrices"]["1"]["achieved"] == 1 / 2
    assert facts["achieved"] == 1 - 7 / 12
    assert facts["target"] == 0.6
