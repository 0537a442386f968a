"""Which matrices of a model share a mask, and which masks compete for the same budget.

A *unit* is one mask with the matrices it serves: usually one matrix; gate and up together when tied; a parameter that
is reached by two names counts once. A *group* is the units that are ranked together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.recognise import Target, match_linears, split_dense
from blast.sparsity.blocks import BlockShape, block_grid, clear_dead_
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.scores import check_finite, joint_norms, random_scores


@dataclass
class Unit:
    """One mask and the matrices under it.

    Attributes:
        index: Its place in the model's order; seeds its random scores.
        block: Shape of a block.
        targets: All names the mask serves.
        matrices: Those with a parameter of their own, so that nothing is counted or cleared twice.
    """

    index: int
    block: BlockShape
    targets: list[Target]
    matrices: list[Target] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matrices = list({id(target.parameter): target for target in reversed(self.targets)}.values())[::-1]
        grids = {target.name: block_grid(target.shape, self.block, target.name) for target in self.targets}
        if len(set(grids.values())) > 1:
            shapes = " and ".join(f"'{target.name}' {target.shape}" for target in self.targets)
            raise BlastError(f"{shapes} cannot share one mask since their shapes differ; set tie_gate_up to false.")

    @property
    def name(self) -> str:
        """Name for messages."""
        return " + ".join(f"'{target.name}'" for target in self.matrices)

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks each way."""
        return block_grid(self.targets[0].shape, self.block, self.targets[0].name)

    @property
    def blocks(self) -> int:
        """Blocks of its mask."""
        return self.grid[0] * self.grid[1]

    @property
    def cost(self) -> int:
        """Matrices that each block of the mask stands for."""
        return len(self.matrices)

    def keep_scores(self, config: SparsifyConfig, step: int) -> Tensor:
        """Scores `[rows, cols]` to keep blocks by; a random order is drawn once, so that such masks are nested."""
        weights = [target.weight for target in self.matrices]
        if config.keep_score == "random":
            return random_scores(self.grid, config.seed, "keep", self.index, device=weights[0].device)
        return check_finite(joint_norms(weights, self.block), f"the weight of {self.name}", step)

    def grow_scores(self, config: SparsifyConfig, step: int) -> Tensor:
        """Scores `[rows, cols]` to grow blocks by; a random order is drawn anew in each step."""
        if config.grow_score == "random":
            device = self.matrices[0].weight.device
            return random_scores(self.grid, config.seed, "grow", step, self.index, device=device)
        gradients = [target.gradient for target in self.matrices]
        if any(gradient is None for gradient in gradients):
            raise BlastError(
                f"{self.name} has no gradient at the mask update of step {step}; "
                "call sparsifier.step() after backward() and before zero_grad(), and leave its weight trainable."
            )
        return check_finite(joint_norms(gradients, self.block), f"the gradient of {self.name}", step)

    def clear_dead(self, mask: Tensor) -> None:
        """Set the weights in dead blocks to zero."""
        for target in self.matrices:
            clear_dead_(target.weight, mask, self.block)


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
