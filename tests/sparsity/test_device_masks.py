"""Masks on the devices of the matrices: new ones overwrite the old ones, and returned copies do not change."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from blast.sparsity.device_masks import DeviceMasks


def masks_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(rows, cols, generator=generator) < 0.5 for rows, cols in ((3, 5), (4, 2))]


def test_new_masks_take_the_place_of_the_old_ones():
    mask_groups = [SimpleNamespace(device=torch.device("cpu")) for _ in range(2)]
    device = DeviceMasks(mask_groups)
    first, second = masks_of(1), masks_of(2)
    device.set(first)
    live, dead = device.live(), device.dead()
    places = [tensor.data_ptr() for tensor in dead]
    device.set(second)
    assert [tensor.data_ptr() for tensor in device.dead()] == places
    for mask, tensor, seen in zip(second, dead, device.live(), strict=True):
        assert torch.equal(tensor[:, 0, :, 0], ~mask)
        assert torch.equal(seen, mask)
    # What `Sparsifier.masks` gave is still what it was.
    assert all(torch.equal(seen, mask) for seen, mask in zip(live, first, strict=True))


def test_masks_that_are_moved_are_made_anew():
    mask_groups = [SimpleNamespace(device=torch.device("cpu"))]
    device = DeviceMasks(mask_groups)
    device.set(masks_of(1)[:1])
    device.dead()
    mask_groups[0].device = torch.device("meta")
    assert device.dead()[0].device.type == "meta"
