"""The index of an MLP as the fused inference kernels read it, and whether the masks have changed since it was made."""

from __future__ import annotations

from typing import NamedTuple

import torch
from blast_kernels.mlp_inference.row_lists import drop_columns, gated_row_list, live_hidden_rows, plain_row_list
from torch import Tensor

from blast.layers.block_linear import BlockLinear


class RowLists(NamedTuple):
    """The index of an MLP for the fused kernels. The blocks stay where the layers hold them.

    Attributes:
        gate_up: Row list of the gate (if any) and up projections, int32.
        down: Row list of the down projection, int32.
        down_blocks: How many blocks `down` names, if some blocks of the down projection are skipped; None if not.
    """

    gate_up: Tensor
    down: Tensor
    down_blocks: int | None


class IndexState(NamedTuple):
    """The tensors of an index, and their version counters; none for inference tensors.

    Those cannot be changed in place outside inference mode.
    """

    offsets: Tensor
    columns: Tensor
    versions: tuple[int, ...]

    @classmethod
    def of(cls, layer: BlockLinear) -> IndexState:
        tensors = layer.row_offsets, layer.col_indices
        known = not any(tensor.is_inference() for tensor in tensors)
        return cls(*tensors, tuple(tensor._version for tensor in tensors) if known else ())


def equal(left: RowLists, right: RowLists) -> bool:
    """Whether two indices are the same, on the same device."""
    pairs = zip(left[:2], right[:2], strict=True)
    return left.down_blocks == right.down_blocks and all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


def row_lists_of(layers: list[BlockLinear], gate: str, skip_dead: bool) -> RowLists:
    """The index of an MLP.

    Args:
        layers: Gate (if any), up, down.
        gate: `none`, `tied` or `untied`.
        skip_dead: Whether to leave out hidden blocks that are always zero, or that no block reads.
    """
    *_, up, down = layers
    live = None
    # The up and down projections have the same hidden blocks only if their block sides agree.
    if skip_dead and up.block.rows == down.block.cols:
        read = torch.zeros(up.row_offsets.numel() - 1, dtype=torch.bool, device=up.row_offsets.device)
        read[down.col_indices.long()] = True
        live = read if gate == "none" else live_hidden_rows(layers[0].row_offsets, up.row_offsets, down.col_indices)
    if gate == "untied":
        first = layers[0]
        gate_up = gated_row_list(first.row_offsets, first.col_indices, up.row_offsets, up.col_indices, live)
    else:
        gate_up = plain_row_list(up.row_offsets, up.col_indices, live)
    if live is not None and not bool(live.all()):
        offsets, columns, places = drop_columns(down.row_offsets, down.col_indices, live)
        if places.numel() < down.col_indices.numel():
            return RowLists(gate_up, plain_row_list(offsets, columns, places=places), places.numel())
    return RowLists(gate_up, plain_row_list(down.row_offsets, down.col_indices), None)
