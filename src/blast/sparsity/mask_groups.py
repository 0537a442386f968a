"""Mask groups: matrices that share a mask. Pruning scopes: mask groups that compete for one budget.

A mask group is usually one matrix. Gate and up form one group if `tie_gate_up` is set. A matrix with two names counts
once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, block_grid
from blast.block_sparse.sharding import matrix_squares
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.model.coverage import dense_mlp_weights, warning_about
from blast.model.discovery import MLP, match_matrices, selects_name, split_dense
from blast.model.eligibility import refuse_ineligible
from blast.model.module_replacement import sparse_layers
from blast.model.sparse_modules import check_all_experts
from blast.model.target import Target
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.joint_scores import check_hidden_units

# A tensor of the shape of a parameter, or None.
MomentOf = Callable[[nn.Parameter], "Tensor | None"]


@dataclass
class MaskGroup:
    """The matrices that share one mask. They are dense, or block-sparse in the sparse state.

    Attributes:
        index: Position in the model's order; it seeds the random scores.
        block: Shape of a block.
        targets: Every name under the mask.
        matrices: The targets with a matrix of their own, so that no matrix is counted or cleared twice.
        shape: `(out, in)` of each matrix.

    Raises:
        BlastError: if the block does not divide a matrix, or the shapes differ.
    """

    index: int
    block: BlockShape
    targets: list[Target]
    matrices: list[Target] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.matrices = list({target.key: target for target in reversed(self.targets)}.values())[::-1]
        grids = {target.name: block_grid(target.shape, self.block, target.name) for target in self.targets}
        if len(set(grids.values())) > 1:
            shapes = " and ".join(f"'{target.name}' {target.shape}" for target in self.targets)
            raise BlastError(f"{shapes} cannot share a mask because their shapes differ; set tie_gate_up to false.")
        self.shape = self.targets[0].shape

    @property
    def name(self) -> str:
        """The quoted names of its matrices, for messages."""
        return " + ".join(f"'{target.name}'" for target in self.matrices)

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns of the mask."""
        return block_grid(self.shape, self.block, self.targets[0].name)

    @property
    def blocks(self) -> int:
        """Blocks of the mask."""
        return self.grid[0] * self.grid[1]

    @property
    def cost(self) -> int:
        """Weight blocks that one block of the mask stands for: the number of matrices."""
        return len(self.matrices)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameter of each matrix: its weight (that of all experts), or in the sparse state its live blocks."""
        return [parameter_of(target) for target in self.matrices]

    @property
    def device(self) -> torch.device:
        """The device of its matrices."""
        return parameter_of(self.matrices[0]).device

    def weight_squares(self, moment_of: MomentOf | None = None) -> list[Tensor]:
        """Sum of squares of the weights by block, for each matrix.

        Args:
            moment_of: A factor of the square of each weight, as a tensor of the parameter's shape; None for no factor.

        Returns:
            float32 `[rows, cols]`; in the sparse state `[nnz]`, one for each live block.
        """
        squares = []
        for target in self.matrices:
            parameter = parameter_of(target)
            moment = None if moment_of is None else moment_of(parameter)
            weight = parameter if moment is None else parameter.detach() * moment.sqrt()
            if isinstance(target.module, BlockLinear):
                squares.append(weight.detach().float().square().sum(dim=(1, 2)))
            else:
                squares.append(matrix_squares(target.stored(weight), self.block, target.transposed))
        return squares

    def gradient_squares(self) -> list[Tensor]:
        """Sum of squares of the dense gradient by block, for each matrix: `[rows, cols]`, float32.

        They are zero for a matrix without a gradient.
        """
        squares = []
        for target in self.matrices:
            gradient = self._gradient(target)
            if gradient is None:
                squares.append(torch.zeros(self.grid, device=self.device))
            else:
                transposed = not isinstance(target.module, BlockLinear) and target.transposed
                squares.append(matrix_squares(gradient, self.block, transposed))
        return squares

    def _gradient(self, target: Target) -> Tensor | None:
        """The dense gradient of a matrix, as it is stored."""
        if isinstance(target.module, BlockLinear):
            return self.dense_gradient(target)
        gradient = target.parameter.grad
        return None if gradient is None else target.stored(gradient)

    def dense_gradient(self, target: Target) -> Tensor | None:
        """The accumulated dense gradient `[out, in]` of a block-sparse matrix; None except at mask updates."""
        gradient = sparse_layer(target).dense_gradient
        return None if gradient is None else gradient.total

    def report(self, live: int, sparsity: float) -> dict[str, dict[str, Any]]:
        """The sparsity of each target by name, as plain JSON values.

        Args:
            live: Live blocks of the mask.
            sparsity: Target share of empty blocks.
        """
        facts = {
            "shape": list(self.shape),
            "block": list(self.block),
            "blocks": self.blocks,
            "live": live,
            "target": sparsity,
            "achieved": 1 - live / self.blocks,
        }
        return {target.name: {"role": target.role, **facts} for target in self.targets}


def sparse_layer(target: Target) -> BlockLinear:
    """The module of a target in the sparse state."""
    layer = target.module
    assert isinstance(layer, BlockLinear)
    return layer


def parameter_of(target: Target) -> nn.Parameter:
    """The parameter of a matrix that the optimizer holds."""
    return target.module.values if isinstance(target.module, BlockLinear) else target.parameter


def find_mask_groups(model: nn.Module, config: SparsifyConfig) -> tuple[list[MaskGroup], list[Target]]:
    """The mask groups that a config asks for, in the model's order.

    Warns of MLP weights that no target holds, if the targets are those of `"mlp"`.

    Args:
        model: The model, dense.
        config: `targets`, `block`, `dense_first`, `dense_last`, `tie_gate_up` are used, and `layer_spread` and
            `joint_hidden` are checked.

    Returns:
        The mask groups, and the targets that stay dense.

    Raises:
        BlastError: if a target matches nothing or is block-sparse already, a layer cannot be made block-sparse, a block
            does not divide a matrix, a matrix to prune shares its parameter with a module that is not a target, or the
            matrices do not allow `layer_spread` or `joint_hidden`.
    """
    _refuse_sparse(model, config.targets)
    pruned, dense = split_dense(match_matrices(model, config.targets), config.dense_first, config.dense_last)
    layers = (target.name for target in pruned if target.expert is None)
    refuse_ineligible(dict(model.named_modules()), layers, "leave it out of the targets")
    check_all_experts(pruned, "the targets")
    if config.joint_hidden:
        check_hidden_units(pruned)
    if config.layer_spread and len({target.layer_path or target.name for target in pruned}) == 1:
        raise BlastError("layer_spread spreads the sparsity over layers, and one alone is pruned; leave it out.")
    _refuse_experts_on_meta(pruned)
    _check_sharing(model, pruned)
    told = warning_about(dense_mlp_weights(model, [*pruned, *dense]), model) if MLP in config.targets else None
    if told is not None:
        warnings.warn(told, stacklevel=3)
    # Targets that share a mask point, directly or over others, to the same key.
    leader: dict[object, object] = {}

    def lead(key: object) -> object:
        while key in leader:
            key = leader[key]
        return key

    if config.tie_gate_up:
        gates = {target.mlp: target for target in pruned if target.role == "gate"}
        for target in pruned:
            if target.role == "up" and target.mlp in gates:
                one, other = lead(gates[target.mlp].key), lead(target.key)
                if one != other:
                    leader[other] = one
    members: dict[object, list[Target]] = {}
    for target in pruned:
        members.setdefault(lead(target.key), []).append(target)
    return [MaskGroup(index, config.block, targets) for index, targets in enumerate(members.values())], dense


def pruning_scopes(mask_groups: Sequence[MaskGroup], ranking: str) -> list[list[MaskGroup]]:
    """The mask groups that compete for one budget.

    Args:
        mask_groups: All mask groups of the model.
        ranking: `matrix` (local: each mask group alone), `layer`, or `model` (global: all of them).
    """
    scopes: dict[object, list[MaskGroup]] = {}
    for group in mask_groups:
        layer = group.targets[0].layer_path
        own = layer if ranking == "layer" and layer is not None else group.index
        scopes.setdefault(None if ranking == "model" else own, []).append(group)
    return list(scopes.values())


def _refuse_experts_on_meta(pruned: Sequence[Target]) -> None:
    for target in pruned:
        if target.expert is not None and target.parameter.is_meta:
            raise BlastError(
                f"'{target.parameter_name}' is on the meta device (not loaded, or offloaded), so its experts cannot be "
                "pruned; load the model on one device, or leave it out of the targets."
            )


def _refuse_sparse(model: nn.Module, targets: Sequence[str]) -> None:
    """Raises if the targets select a layer that is block-sparse already."""
    for name in sparse_layers(model):
        if any(selects_name(target, name) for target in targets):
            raise BlastError(
                f"'{name}' is block-sparse already; call blast.to_dense(model) first, then create the optimizer and "
                "the Sparsifier."
            )


def _check_sharing(model: nn.Module, pruned: Sequence[Target]) -> None:
    """Raises if a module outside the targets uses a parameter to prune, as an output head does with an embedding."""
    names = {id(target.parameter): target.name for target in pruned}
    modules = {id(target.module) for target in pruned}
    for owner, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in names and id(module) not in modules:
                raise BlastError(
                    f"the weight of '{names[id(parameter)]}' is also the weight of '{owner}', which is not a target; "
                    "remove it from the targets, or add both."
                )
