"""How evenly the hidden blocks of trained masks are dealt out: what the docs say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

import blast
from blast.benchmark.mlp import DenseMlp
from blast.block_sparse.csr import BlockIndex
from blast.experiment.analysis.live_blocks import last_masks
from blast.tensor_parallel.mlp import hidden_features

ROOT = Path(__file__).resolve().parents[2]
MASKS = "results/recorded/nvidia-h200/masks/quality/gpt2.technical_text.gmp.s95.b64.seed0.safetensors"
SIDE, PROCESSES = 64, 4


def test_the_balance_of_the_docs_is_that_of_the_recorded_masks():
    masks = last_masks(ROOT / MASKS)
    with torch.device("meta"):
        (mlp,) = blast.find_mlps(nn.Sequential(DenseMlp(768, 3072, gated=False)))
    dealt, runs = [], []
    for layer in range(12):
        up, down = (masks[f"transformer.h.{layer}.mlp.{name}"] for name in ("c_fc", "c_proj"))
        indices = {
            mlp.up.name: BlockIndex.from_mask(torch.from_numpy(up), (3072, 768)),
            mlp.down.name: BlockIndex.from_mask(torch.from_numpy(down), (768, 3072)),
        }
        live = np.asarray(up.sum(1) + down.sum(0))
        mean = live.sum() / PROCESSES
        kept = [features.numpy()[::SIDE] // SIDE for features in hidden_features(mlp, indices, PROCESSES)]
        assert sorted(np.concatenate(kept)) == list(range(3072 // SIDE))
        dealt.append(max(live[each].sum() for each in kept) / mean)
        runs.append(max(each.sum() for each in np.array_split(live, PROCESSES)) / mean)
    text = " ".join((ROOT / "docs" / "tensor_parallel.md").read_text().split())
    said = re.search(r"fullest of 4 processes has ([\d.]+) times the mean .* it would have ([\d.]+) times", text)
    assert said is not None
    assert said.groups() == (f"{np.mean(dealt):.2f}", f"{np.mean(runs):.2f}")
