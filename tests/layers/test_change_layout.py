"""New layouts of many matrices, computed at once on the CPU, match those of single matrices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from blast_kernels.mlp_training.index_lists import index_lists_on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_pairs import pair
from torch import Tensor

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.cpu_index import CpuIndex
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.layers.block_linear import IndexBuffers
from blast.layers.change_layout import change_layouts, gather_blocks, scatter_blocks
from blast.layers.mlp_autograd import list_arrays
from blast.layers.training_mlp import TrainingMlp
from blast.model.fuse import fuse_for_training

BUFFERS = ("row_offsets", "col_indices", "t_offsets", "t_indices", "t_order")
SHARES = st.sampled_from([0.0, 0.3, 0.7, 1.0])


def mask_of(rows: int, cols: int, share: float, seed: int) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < share


def same_index(ours: IndexBuffers, mask: Tensor, shape: tuple[int, int]) -> None:
    expected = IndexBuffers(BlockIndex.from_mask(mask, shape))
    for name in BUFFERS:
        assert getattr(ours, name).dtype == torch.int32
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert torch.equal(ours.index.mask(), mask)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), SHARES, SHARES, st.integers(0, 10_000))
def test_a_remap_moves_kept_blocks_and_fills_grown_blocks_with_zeros_or_a_gradient(rows, cols, sooner, later, seed):
    shape = (rows * 3, cols * 2)
    old, new = mask_of(rows, cols, sooner, seed), mask_of(rows, cols, later, seed + 1)
    before = IndexBuffers(BlockIndex.from_mask(old, shape))
    layouts = change_layouts({before: new.numpy()}, [])
    assert (before in layouts) == (not torch.equal(old, new))
    if before not in layouts:
        return
    after, remap = layouts[before]
    same_index(after, new, shape)
    dense, gradient = torch.randn(shape), torch.randn(shape)
    blocks = BlockCSR.from_dense(dense, old).values
    # The expected blocks, by way of the dense matrix.
    assert torch.equal(remap.apply(blocks), gather_blocks(scatter_blocks(blocks, before.index), after.index))
    both = gather_blocks(scatter_blocks(blocks, before.index), after.index)
    grown = ~old[after.index.coordinates()]
    both[grown] = gather_blocks(gradient, after.index)[grown]
    assert torch.equal(remap.apply_with_dense(blocks, gradient), both)


def test_batched_layouts_and_lists_match_those_of_single_matrices():
    _, sparse, masks = pair("llama")
    model = fuse_for_training(sparse)
    mlps = [module for module in model.modules() if isinstance(module, TrainingMlp)]
    assert len(mlps) == 2
    layers = {name: model.get_submodule(name) for name in masks}
    # The last matrix keeps its mask, and so do those that it shares its index with.
    kept = list(layers.values())[-1].index
    changes = {}
    for seed, layer in enumerate(layers.values()):
        if layer.index is not kept:
            changes.setdefault(layer.index, mask_of(*layer.index.index.grid, 0.4, seed).numpy())
    changes[kept] = kept.index.mask().numpy()
    layouts = change_layouts(changes, mlps)
    assert kept not in layouts
    assert len(layouts) == len(changes) - 1
    for before, (after, _) in layouts.items():
        same_index(after, torch.from_numpy(changes[before]), before.shape)
    for layer in layers.values():
        layer.index = layouts[layer.index][0] if layer.index in layouts else layer.index
    for mlp in mlps:
        given = list(mlp.lists.tensors)
        *front, down = mlp.layers
        # Asked for again, they are not made again.
        assert all(a is b for a, b in zip(mlp.lists.of(mlp.layers), given, strict=True))
        expected = index_lists_on_device(
            [(layer.row_offsets, layer.col_indices) for layer in front],
            (down.row_offsets, down.col_indices),
            front[0].in_features // front[0].block.cols,
            mlp.gate_kind == "tied",
        )
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(given, expected, strict=True))


def test_mlps_of_different_shapes_get_their_own_lists_in_order():
    def mlp(hidden: int, inner: int, seed: int) -> tuple[list[SimpleNamespace], list[CpuIndex]]:
        shapes = [(hidden, inner), (inner, hidden)]
        layers = [
            SimpleNamespace(out_features=8 * out, in_features=8 * given, block=BlockShape(8, 8), index=object())
            for out, given in shapes
        ]
        return layers, [CpuIndex.from_mask(mask_of(*shape, 0.5, seed + n).numpy()) for n, shape in enumerate(shapes)]

    mlps = [mlp(4, 3, 0), mlp(6, 2, 2), mlp(4, 3, 4), mlp(6, 2, 6)]
    for lists, one in zip(list_arrays(mlps), mlps, strict=True):
        assert all(np.array_equal(ours, alone) for ours, alone in zip(lists, list_arrays([one])[0], strict=True))


def test_writing_to_the_buffers_of_an_index_does_not_change_another_index():
    index = BlockIndex.from_mask(torch.eye(2, dtype=torch.bool), (4, 4))
    same = BlockIndex(index.row_offsets, index.col_indices, (4, 4), index.block)
    index.col_indices.copy_(torch.tensor([1, 0]))
    assert same.cpu_index.col_indices.tolist() == index.cpu_index.col_indices.tolist() == [0, 1]
