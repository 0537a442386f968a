"""What each of two processes runs in the tests of sharded models (`fully_shard`)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from distributed_cases import RANKS, refusal
from switch_cases import OPTIMIZERS, SETTINGS, STEPS, nano, nano_loss
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import blast
from blast.block_sparse.blocks import BlockShape, expand_mask
from blast.block_sparse.sharding import clear_dead_anywhere_, matrix_squares
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

# By name: the model, and what differs from SETTINGS. Blocks with a side of 128 are cut between two processes.
WAYS = {
    "gpt2": ("gpt2-nano", {}),
    "gpt2, blocks cut": ("gpt2-nano", {"block": [32, 128]}),
    "llama, tied": ("llama-nano", {"tie_gate_up": True}),
    "llama, blocks cut": ("llama-nano", {"block": [128, 16], "tie_gate_up": True}),
    "llama, swap": ("llama-nano", {"grow": "swap", "ranking": "model"}),
    "llama, copied": ("llama-nano", {}),
}
# Sides, blocks and the side that is cut, of a matrix on its own: even and uneven parts, and one that is empty.
MATRICES = [
    ((64, 32), (16, 16), 0),
    ((35, 12), (5, 4), 0),
    ((12, 35), (4, 5), 1),
    ((1, 6), (1, 2), 0),
    ((36, 8), (12, 8), 0),
]


def work(rank: int, folder: str) -> None:
    """Runs every case in one of two processes and saves what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    out: dict = {way: trained(rank, way) for way in WAYS}
    out["shards"] = [on_its_own(*matrix) for matrix in MATRICES]
    out["finished early"] = finished_early()
    out["refused"] = refused(Path(folder) / "model")
    out["resumed"] = resumed(rank)
    out["saved"] = saved(rank, Path(folder) / "whole")
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def cut_up(name: str, copies: int = 1) -> nn.Module:
    """A model with sharded MLPs and a sharded remainder; replicated instead if `copies` is 2."""
    model = nano(name)
    mesh = init_device_mesh("cpu", (copies, RANKS // copies), mesh_dim_names=("copies", "shards"))
    mesh = mesh["shards"] if copies == 1 else mesh
    for module in list(model.modules()):
        if type(module).__name__ in ("GPT2MLP", "LlamaMLP"):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sparsified(name: str, copies: int = 1, **settings) -> Sparsifier:
    model = cut_up(name, copies)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    return Sparsifier(model, optimizer, SparsifyConfig(**{**SETTINGS, **settings}))


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor().clone()


def trained(rank: int, way: str) -> dict:
    """A run on the data of a rank, with the number of nonzero elements in dead blocks after each step."""
    name, settings = WAYS[way]
    sparsifier = sparsified(name, copies=2 if way.endswith("copied") else 1, **settings)
    optimizer = sparsifier.optimizer
    masks, dead, moments = [], [], []
    for _ in range(STEPS):
        train_step(sparsifier, rank)
        masks.append(dict(sparsifier.masks))
        dead.append(sum(left(sparsifier, target.weight, group) for group, target in matrices(sparsifier)))
        states = [(group, target, optimizer.state[target.parameter]) for group, target in matrices(sparsifier)]
        moments.append(sum(left(sparsifier, t.as_out_in(state["exp_avg"]), group) for group, t, state in states))
    found = {"weights": weights(sparsifier), "execution": sparsifier.execution}
    return {"masks": masks, "dead": dead, "moments": moments, **found}


def train_step(sparsifier: Sparsifier, rank: int) -> None:
    sparsifier.optimizer.zero_grad()
    nano_loss(sparsifier.model, 100 * rank + sparsifier.step_count).backward()
    sparsifier.step()
    nn.utils.clip_grad_norm_(sparsifier.model.parameters(), 0.5)
    sparsifier.optimizer.step()


def resumed(rank: int) -> dict:
    """A run that is resumed from a sharded checkpoint, and the same run without interruption."""
    whole_run, first, second = (sparsified("llama-nano", tie_gate_up=True) for _ in range(3))
    for step in range(STEPS):
        train_step(whole_run, rank)
        if step < STEPS // 2:
            train_step(first, rank)
    model, optimizer = get_state_dict(first.model, first.optimizer)
    second.load_state_dict(first.state_dict())
    set_state_dict(second.model, second.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    while second.step_count < STEPS:
        train_step(second, rank)
    return {"masks": [dict(second.masks), dict(whole_run.masks)], "weights": [weights(second), weights(whole_run)]}


def weights(sparsifier: Sparsifier) -> dict[str, Tensor]:
    return {name: whole(parameter) for name, parameter in sparsifier.model.named_parameters()}


def matrices(sparsifier: Sparsifier) -> list:
    return [(group, target) for group in sparsifier._mask_groups for target in group.matrices]


def left(sparsifier: Sparsifier, matrix: Tensor, group) -> int:
    """Elements in dead blocks of a matrix that are not zero."""
    live = expand_mask(sparsifier.masks[group.targets[0].name], group.block)
    return int(whole(matrix)[~live].count_nonzero())


def on_its_own(shape: tuple[int, int], block: tuple[int, int], side: int) -> dict:
    """Norms and clearing of a sharded matrix and of its transpose."""
    mesh = init_device_mesh("cpu", (RANKS,))
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    mask = torch.rand(shape[0] // block[0], shape[1] // block[1]) < 0.5
    shard = distribute_tensor(matrix, mesh, [Shard(side)])
    norms = matrix_squares(shard, BlockShape(*block)).sqrt()
    turned = matrix_squares(shard, BlockShape(*block[::-1]), transposed=True).sqrt()
    clear_dead_anywhere_(shard, mask, BlockShape(*block), transposed=False)
    stored = distribute_tensor(matrix.t().contiguous(), mesh, [Shard(1 - side)])
    clear_dead_anywhere_(stored, mask, BlockShape(*block), transposed=True)
    cleared = [whole(shard), whole(stored).t()]
    return {"matrix": matrix, "mask": mask, "norms": norms, "turned": turned, "cleared": cleared}


def finished_early() -> dict:
    """`finish` right after an evaluation, which leaves unsharded parameters in the outermost module."""
    model = fully_shard(nano("gpt2-nano"))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier = Sparsifier(model, optimizer, SparsifyConfig(**SETTINGS))
    with torch.no_grad():
        nano_loss(model, 0)
    before = type(model.get_parameter("transformer.h.0.mlp.c_fc.weight").data).__name__
    sparsifier.finish()
    dead = sum(left(sparsifier, target.weight, group) for group, target in matrices(sparsifier))
    return {"before": before, "dead": dead, "achieved": sparsifier.sparsity_achieved}


def refused(folder: Path) -> list[str]:
    sparsifier = sparsified("gpt2-nano")
    return [
        refusal(lambda: sparsified("gpt2-nano", execution="sparse")),
        refusal(sparsifier.to_sparse),
        refusal(lambda: blast.to_sparse(sparsifier.model, sparsifier.masks)),
        refusal(lambda: blast.save(sparsifier.model, folder)),
    ]


def saved(rank: int, folder: Path) -> dict:
    """Saves a sharded model in the way that the error message suggests."""
    sparsifier = sparsified("gpt2-nano")
    sparsifier.finish()
    state = get_model_state_dict(sparsifier.model, options=StateDictOptions(full_state_dict=True))
    # With more than one process the state is that of the first alone.
    if rank == 0:
        model = nano("gpt2-nano")
        model.load_state_dict(state)
        blast.save(blast.to_sparse(model, sparsifier.masks), folder)
    dist.barrier()
    return {"masks": dict(sparsifier.masks), "loaded": blast.masks_of(blast.load(folder))}
