"""The work of each of two processes in the tests of distributed training."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from switch_cases import OPTIMIZERS, SETTINGS, STEPS, dense_weights, nano, nano_loss
from torch import nn

from blast.distributed import average_gradients
from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

RANKS = 2
WAYS = {
    "masked": {"execution": "masked"},
    "switching": {"execution": "sparse", "break_even": 0.6},
    "sparse": {"execution": "sparse"},
}


def work(rank: int, folder: str) -> None:
    """Runs every case in one of two processes and saves what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    out = {way: trained(rank, way) for way in WAYS}
    out["wrapped"] = trained(rank, "masked", wrapped=True)
    out["apart"] = trained(rank, "masked", averaged=False)
    out["refused"] = refusal(lambda: trained(rank, "sparse", wrapped=True))
    out["forgotten"] = refusal(lambda: trained(rank, "sparse", averaged=False))
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def trained(rank: int, way: str, wrapped: bool = False, averaged: bool = True) -> dict:
    """A run on the data of one rank."""
    model = nano("gpt2-nano")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    whole = nn.parallel.DistributedDataParallel(model) if wrapped else model
    sparsifier = Sparsifier(whole, optimizer, SparsifyConfig(**{**SETTINGS, **WAYS[way]}))
    for step in range(STEPS):
        optimizer.zero_grad()
        nano_loss(whole, 100 * rank + step).backward()
        if averaged:
            average_gradients(whole)
        sparsifier.step()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return {"masks": sparsifier.masks, "weights": dense_weights(model), "execution": sparsifier.execution}


def refusal(case) -> str:
    """The error message of a case; empty without an error."""
    try:
        case()
    except BlastError as error:
        return str(error)
    return ""
