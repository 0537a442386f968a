"""Which matrices of a model share a mask, and which masks compete for the same budget.

A *unit* is one mask with the matrices it serves: usually one matrix; gate and up together when tied; a parameter that
is reached by two names counts once. A *group* is the units that are ranked together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, block_grid, fill_dead_
from blast.block_sparse.sharding import clear_dead_anywhere_, is_sharded, matrix_squares
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.model.discovery import Target, match_linears, split_dense
from blast.sparsity.config import SparsifyConfig


@dataclass
class Unit:
    """One mask and the matrices under it, dense or (see `SparseState`) block-sparse.

    Attributes:
        index: Its place in the model's order; seeds its random scores.
        block: Shape of a block.
        targets: All names the mask serves.
        matrices: Those with a parameter of their own, so that nothing is counted or cleared twice.
        shape: `(out, in)` of each.
    """

    index: int
    block: BlockShape
    targets: list[Target]
    matrices: list[Target] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.matrices = list({id(target.parameter): target for target in reversed(self.targets)}.values())[::-1]
        grids = {target.name: block_grid(target.shape, self.block, target.name) for target in self.targets}
        if len(set(grids.values())) > 1:
            shapes = " and ".join(f"'{target.name}' {target.shape}" for target in self.targets)
            raise BlastError(f"{shapes} cannot share one mask since their shapes differ; set tie_gate_up to false.")
        self.shape = self.targets[0].shape

    @property
    def name(self) -> str:
        """Name for messages."""
        return " + ".join(f"'{target.name}'" for target in self.matrices)

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks each way."""
        return block_grid(self.shape, self.block, self.targets[0].name)

    @property
    def blocks(self) -> int:
        """Blocks of its mask."""
        return self.grid[0] * self.grid[1]

    @property
    def cost(self) -> int:
        """Matrices that each block of the mask stands for."""
        return len(self.matrices)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameter of each matrix: its weight, or the values of its live blocks."""
        return [parameter_of(target) for target in self.matrices]

    @property
    def device(self) -> torch.device:
        """Where its matrices are."""
        return parameter_of(self.matrices[0]).device

    def weight_squares(self) -> list[Tensor]:
        """Sum of squares of the blocks of each matrix, float32: `[rows, cols]`, or `[nnz]` if only live ones exist."""
        squares = []
        for target in self.matrices:
            if isinstance(target.module, BlockLinear):
                squares.append(target.module.values.detach().float().square().sum(dim=(1, 2)))
            else:
                squares.append(matrix_squares(target.parameter, self.block, target.transposed))
        return squares

    def gradient_squares(self, step: int) -> list[Tensor]:
        """Sum of squares of the blocks of each matrix's dense gradient `[rows, cols]`, float32.

        Raises:
            BlastError: if a matrix has no gradient.
        """
        squares = []
        for target in self.matrices:
            if isinstance(target.module, BlockLinear):
                gradient, turned = self.dense_gradient(target), False
            else:
                gradient, turned = target.parameter.grad, target.transposed
            if gradient is None:
                raise BlastError(
                    f"{self.name} has no gradient at the mask update of step {step}; "
                    "call sparsifier.step() after backward() and before zero_grad(), and leave its weight trainable."
                )
            squares.append(matrix_squares(gradient, self.block, turned))
        return squares

    def dense_gradient(self, target: Target) -> Tensor | None:
        """The dense gradient `[out, in]` of a block-sparse matrix, which is there at mask updates alone."""
        watch = target.module.dense_gradient
        return None if watch is None else watch.total

    def report(self, live: int, sparsity: float) -> dict[str, dict[str, Any]]:
        """What was pruned of each target, as plain JSON values, by name.

        Args:
            live: Live blocks of its mask.
            sparsity: The share of empty ones that was asked for.
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

    def clear_dead(self, dead: Tensor) -> None:
        """Set the weights in dead blocks to zero; `dead` as for `fill_dead_`, here and below."""
        for target in self.matrices:
            self._fill_dead(target.parameter, dead, target)

    def clear_dead_gradient(self, dead: Tensor) -> None:
        """Set the gradients of dead blocks to zero."""
        for target in self.matrices:
            gradient = target.parameter.grad
            if gradient is not None:
                self._fill_dead(gradient, dead, target)

    def clear_dead_state(self, dead: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Set what an optimizer keeps of dead blocks to zero."""
        for target in self.matrices:
            parameter = target.parameter
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._fill_dead(value, dead, target)

    def _fill_dead(self, stored: Tensor, dead: Tensor, target: Target) -> None:
        if is_sharded(stored):
            clear_dead_anywhere_(stored, ~dead[:, 0, :, 0], self.block, target.transposed)
        else:
            fill_dead_(stored, dead, self.block, target.transposed)


def parameter_of(target: Target) -> nn.Parameter:
    """What the optimizer holds of a matrix."""
    return target.module.values if isinstance(target.module, BlockLinear) else target.parameter


def units_of(model: nn.Module, config: SparsifyConfig) -> tuple[list[Unit], list[Target]]:
    """The masks that a config asks for in a model, in the model's order, and the targets that it leaves dense.

    Raises:
        BlastError: if a target matches nothing, a block does not divide a matrix, or a matrix to prune is shared with
            a part of the model that is not to be pruned.
    """
    pruned, dense = split_dense(match_linears(model, config.targets), config.dense_first, config.dense_last)
    _check_sharing(model, pruned)
    # Targets that must share a mask point, directly or in turn, to the same key.
    leader: dict[object, object] = {}

    def lead(key: object) -> object:
        while key in leader:
            key = leader[key]
        return key

    if config.tie_gate_up:
        gates = {target.mlp: target for target in pruned if target.role == "gate"}
        for target in pruned:
            if target.role == "up" and target.mlp in gates:
                one, other = lead(id(gates[target.mlp].parameter)), lead(id(target.parameter))
                if one != other:
                    leader[other] = one
    members: dict[object, list[Target]] = {}
    for target in pruned:
        members.setdefault(lead(id(target.parameter)), []).append(target)
    return [Unit(index, config.block, targets) for index, targets in enumerate(members.values())], dense


def groups_of(units: Sequence[Unit], ranking: str) -> list[list[Unit]]:
    """The units that compete: each for itself (`matrix`), those of a layer (`layer`), or all (`model`)."""
    groups: dict[object, list[Unit]] = {}
    for unit in units:
        layer = unit.targets[0].layer_path
        own = layer if ranking == "layer" and layer is not None else unit.index
        groups.setdefault(None if ranking == "model" else own, []).append(unit)
    return list(groups.values())


def _check_sharing(model: nn.Module, pruned: Sequence[Target]) -> None:
    """Refuse to prune a parameter that something outside the targets uses too (an output head tied to an embedding)."""
    names = {id(target.parameter): target.name for target in pruned}
    modules = {id(target.module) for target in pruned}
    for owner, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in names and id(module) not in modules:
                raise BlastError(
                    f"the weight of '{names[id(parameter)]}' is also that of '{owner}', which is not to be pruned; "
                    "leave it out of the targets, or target both."
                )
