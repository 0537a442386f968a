"""Masks on the devices of the matrices, and the clearing of dead blocks with them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from blast.block_sparse.blocks import BlockShape, expand_mask
from blast.model.target import ExpertSlice, Target
from blast.sparsity.dead_blocks import DeadBlocks
from blast.sparsity.device_masks import DeviceMasks
from blast.sparsity.mask_groups import MaskGroup

BLOCK = BlockShape(2, 4)


def linear_groups() -> list[MaskGroup]:
    layers = [torch.nn.Linear(20, 6), torch.nn.Linear(8, 8)]
    return [MaskGroup(n, BLOCK, [Target(f"{n}", layer, "other", None)]) for n, layer in enumerate(layers)]


def expert_groups(experts: int, transposed: bool) -> list[MaskGroup]:
    module = torch.nn.Module()
    sides = (8, 4) if transposed else (4, 8)
    module.up_proj = torch.nn.Parameter(torch.ones(experts, *sides))
    return [
        MaskGroup(n, BLOCK, [Target(f"up_proj.{n}", module, "up", "", ExpertSlice("up_proj", n, transposed))])
        for n in range(experts)
    ]


def random_masks(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(group.grid, generator=generator) < 0.5 for group in groups]


def test_copies_that_were_given_stay_as_they_are():
    groups = linear_groups()
    device = DeviceMasks(groups)
    first, second = random_masks(groups, 1), random_masks(groups, 2)
    device.set(first)
    live = device.live()
    device.set(second)
    assert all(torch.equal(seen, mask) for seen, mask in zip(device.live(), second, strict=True))
    assert all(torch.equal(seen, mask) for seen, mask in zip(live, first, strict=True))


def test_masks_that_are_moved_are_copied_anew():
    groups = [SimpleNamespace(device=torch.device("cpu"))]
    device = DeviceMasks(groups)
    device.set([torch.ones(2, 2, dtype=torch.bool)])
    device.live()
    groups[0].device = torch.device("meta")
    assert device.live()[0].device.type == "meta"


def test_new_masks_of_dead_blocks_take_the_place_of_the_old_ones():
    groups = linear_groups()
    dead = DeadBlocks(groups)
    for seed in (1, 2):
        masks = random_masks(groups, seed)
        dead.set(masks)
        for group in groups:
            torch.nn.init.ones_(group.parameters[0])
        with torch.no_grad():
            dead.clear_weights()
        places = [mask.data_ptr() for _, mask in dead._with_masks()]
        for group, mask in zip(groups, masks, strict=True):
            assert torch.equal(group.parameters[0], expand_mask(mask, BLOCK).float())
    # Captured CUDA graphs read them.
    dead.set(random_masks(groups, 3))
    assert [mask.data_ptr() for _, mask in dead._with_masks()] == places


def test_all_experts_of_a_parameter_are_cleared_in_one_operation():
    for transposed in (False, True):
        groups = expert_groups(5, transposed)
        masks = random_masks(groups, 4)
        dead = DeadBlocks(groups)
        dead.set(masks)
        with torch.no_grad():
            dead.clear_weights()
        assert len(dead._with_masks()) == 1
        for group, mask in zip(groups, masks, strict=True):
            assert torch.equal(group.matrices[0].weight, expand_mask(mask, BLOCK).float())
