"""Permutes the hidden units of MLPs, so that important units lie in the same blocks. The function does not change.

Hidden unit `k` of an MLP is row `k` of gate and up (and of their biases) and column `k` of down. Any order of the units
gives the same output. Blocks are cut by order, so an order with like units side by side leaves more blocks that are
unimportant as a whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.conv1d import is_conv1d
from blast.errors import BlastError
from blast.model.discovery import find_mlps
from blast.model.target import Mlp, Target

# Why no MLP can be permuted.
IN_PART = "only some of the matrices of each are pruned; choose all of them with 'targets', or"
BY_PLACE = "something else reads hidden units by their place;"
NO_MLP = "the targets are no MLPs of linear layers (experts in larger parameters are none);"


@torch.no_grad()
def permute_hidden_units_(model: nn.Module, names: Sequence[str], block: BlockShape) -> dict[str, Tensor]:
    """Permutes the hidden units of the MLPs whose matrices are named, in place.

    Args:
        model: A dense model. An optimizer that has state for it does not fit afterwards.
        names: The matrices that will be pruned. MLPs that cannot be permuted, for instance because only some of their
            matrices are named, are left as they are; a warning names them.
        block: Shape of the blocks.

    Returns:
        For each permuted MLP, by name, the old place of each hidden unit, int64 `[ffn]`.

    Raises:
        BlastError: if no MLP can be permuted.
    """
    wanted, made = set(names), {}
    left: dict[str, str] = {}
    for mlp in find_mlps(model):
        pruned = [target.name in wanted for target in mlp.targets]
        if not all(pruned):
            left |= {mlp.name: IN_PART} if any(pruned) else {}
            continue
        if _reads_units_by_place(model, mlp):
            left[mlp.name] = BY_PLACE
            continue
        order = hidden_order(mlp, block)
        for target in mlp.targets:
            _permute(target, order, rows=target is not mlp.down)
        made[mlp.name] = order
    if not made:
        why = next((why for why in (IN_PART, BY_PLACE) if why in left.values()), NO_MLP)
        raise BlastError(f"no MLP of this model can be permuted, because {why} leave the permutation out.")
    for why, reason in ((IN_PART, "only some of their matrices are pruned"), (BY_PLACE, BY_PLACE.rstrip(";"))):
        if same := [name for name in left if left[name] == why]:
            shown = ", ".join(f"'{name}'" for name in same[:3]) + (" …" if len(same) > 3 else "")
            share = f"{len(same)} of {len(left) + len(made)} MLPs"
            warnings.warn(f"{share} were not permuted, because {reason}: {shown}.", stacklevel=3)
    return made


def hidden_order(mlp: Mlp, block: BlockShape) -> Tensor:
    """An order of the hidden units in which the units of each block of `block.rows` are alike.

    A unit is described by the norms of its weights in each block column of gate and up and each block row of
    down. Blocks are filled one after the other: the unit with the largest weights that is left, then those most like
    it. Ties go to the earlier unit.
    """
    profiles = []
    for target in mlp.targets:
        weight = target.weight.float()
        rows = weight.t() if target is mlp.down else weight  # a hidden unit a row
        side = block.rows if target is mlp.down else block.cols
        profiles.append(rows.reshape(len(rows), -1, side).norm(dim=2))
    profile = torch.cat(profiles, 1).double().cpu().numpy()
    strength = np.square(profile).sum(1)
    left = np.ones(len(profile), dtype=bool)
    order: list[int] = []
    while left.any():
        able = np.flatnonzero(left)
        first = able[np.argmax(strength[able])]
        distance = np.square(profile[able] - profile[first]).sum(1)
        others = able[np.argsort(distance, kind="stable")]
        chosen = [first, *others[others != first][: block.rows - 1]]
        order += chosen
        left[chosen] = False
    return torch.tensor(np.array(order), dtype=torch.int64)


def _permute(target: Target, order: Tensor, rows: bool) -> None:
    weight, order = target.weight, order.to(target.weight.device)
    weight.copy_(weight[order] if rows else weight[:, order])
    bias = target.module._parameters.get("bias")
    if rows and bias is not None:
        bias.copy_(bias[order])


def _reads_units_by_place(model: nn.Module, mlp: Mlp) -> bool:
    """Whether something tells the hidden units of an MLP apart: a norm or scale of them, or a tied matrix."""
    matrices, parameters = {id(t.module) for t in mlp.targets}, {id(t.parameter) for t in mlp.targets}
    # A layer that stands at several places counts as another at each further one.
    names = {target.name for target in mlp.targets}
    places = model.named_modules(remove_duplicate=False)
    others = [module for name, module in places if name not in names]
    if any(id(parameter) in parameters for module in others for parameter in module._parameters.values()):
        return True
    for module in mlp.module.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        other = id(module) not in matrices and not (isinstance(module, nn.Linear) or is_conv1d(module))
        if other and any(tensor is not None and mlp.up.shape[0] in tensor.shape for tensor in tensors):
            return True
    return False
