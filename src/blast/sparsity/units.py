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

from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.layers.recognise import Target, match_linears, split_dense
from blast.layers.repack import norms_of
from blast.sparsity.blocks import BlockShape, block_grid
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.ranks import mean_over_ranks_
from blast.sparsity.scores import check_finite, mean_norms, random_scores
from blast.sparsity.shards import clear_dead_anywhere_, matrix_norms


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
        return self.parameters[0].device

    def keep_scores(self, config: SparsifyConfig, step: int) -> Tensor:
        """Scores `[rows, cols]` to keep blocks by; a random order is drawn once, so that such masks are nested."""
        if config.keep_score == "random":
            return random_scores(self.grid, config.seed, "keep", self.index, device=self.device)
        norms = mean_over_ranks_(mean_norms([self._weight_norms(target) for target in self.matrices]))
        return check_finite(norms, f"the weight of {self.name}", step)

    def grow_scores(self, config: SparsifyConfig, step: int) -> Tensor:
        """Scores `[rows, cols]` to grow blocks by; a random order is drawn anew in each step."""
        if config.grow_score == "random":
            return random_scores(self.grid, config.seed, "grow", step, self.index, device=self.device)
        gradients = [self.dense_gradient(target) for target in self.matrices]
        if any(gradient is None for gradient in gradients):
            raise BlastError(
                f"{self.name} has no gradient at the mask update of step {step}; "
                "call sparsifier.step() after backward() and before zero_grad(), and leave its weight trainable."
            )
        norms = mean_over_ranks_(mean_norms([matrix_norms(gradient, self.block) for gradient in gradients]))
        return check_finite(norms, f"the gradient of {self.name}", step)

    def dense_gradient(self, target: Target) -> Tensor | None:
        """The gradient `[out, in]` of a matrix; in the sparse state it is there at mask updates alone."""
        if not isinstance(target.module, BlockLinear):
            return target.gradient
        return None if target.module.watch is None else target.module.watch.total

    def _weight_norms(self, target: Target) -> Tensor:
        if isinstance(target.module, BlockLinear):
            return norms_of(target.module.values.detach(), target.module.index.index)
        return matrix_norms(target.weight, self.block)

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

    def clear_dead(self, mask: Tensor) -> None:
        """Set the weights in dead blocks to zero."""
        for target in self.matrices:
            clear_dead_anywhere_(target.parameter, mask, self.block, target.transposed)

    def clear_dead_gradient(self, mask: Tensor) -> None:
        """Set the gradients of dead blocks to zero."""
        for target in self.matrices:
            if target.parameter.grad is not None:
                clear_dead_anywhere_(target.parameter.grad, mask, self.block, target.transposed)

    def clear_dead_state(self, mask: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Set what an optimizer keeps of dead blocks to zero."""
        for target in self.matrices:
            for value in optimizer.state.get(target.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == target.parameter.shape:
                    clear_dead_anywhere_(value, mask, self.block, target.transposed)


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
