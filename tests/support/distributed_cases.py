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
    out["uneven"] = uneven(rank)
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


def uneven(rank: int) -> dict:
    """A run in which one process alone lacks a gradient, and one alone has an infinite one."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, SparsifyConfig(0.5, 8, steps=8, update_every=2, initial_sparsity=0.25))
    waited = []
    for step in range(8):
        model(torch.randn(8, 16, generator=torch.Generator().manual_seed(10 * rank + step))).square().mean().backward()
        average_gradients(model)
        if rank == 1 and step == 2:
            model[0][0].weight.grad = None
        if rank == 1 and step == 4:
            model[1][0].weight.grad.fill_(float("inf"))
        sparsifier.step()
        waited.append(sparsifier.update_due)
        if step != 4:
            optimizer.step()
        optimizer.zero_grad()
    return {"masks": sparsifier.masks, "waited": waited, "weights": {}}


def refusal(case) -> str:
    """The error message of a case; empty without an error."""
    try:
        case()
    except BlastError as error:
        return str(error)
    return ""
