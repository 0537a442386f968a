"""The sparse state of a model in training: parameters, gradients and optimizer state are those of live blocks alone.

Entered from the masked-dense state and left for it at any step, without a change of what is trained: values, moments
and the gradient of the step are cut into blocks or put together, and the parameters are replaced in their groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from blast.block_sparse.csr import BlockIndex
from blast.distributed import mean_over_ranks_
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.change_layout import change_layouts, gather_blocks, scatter_blocks
from blast.layers.dense_gradient import DenseGradient
from blast.layers.mlp_autograd import accumulate_dense_gradients, all_accumulate
from blast.layers.training_mlp import TrainingMlp
from blast.model.convert import to_dense, to_sparse
from blast.model.fuse import fuse_for_training
from blast.model.target import Target
from blast.sparsity.execution.optimizer_state import check_optimizer, replace_parameter
from blast.sparsity.mask_groups import Unit, parameter_of

# Largest relative difference of the two ways to the gradient of live blocks, both rounded in half precision.
SAME_GRADIENT = 0.1


@torch.no_grad()
def enter(
    model: nn.Module, optimizer: torch.optim.Optimizer, units: Sequence[Unit], masks: Sequence[Tensor]
) -> list[TrainingMlp]:
    """Takes a model from its masked-dense to its sparse state, in place.

    Args:
        model: Its dead blocks are given up, whatever they hold.
        optimizer: Holds its parameters.
        units: The matrices; they stand for the block-sparse ones afterwards.
        masks: Of each unit, bool `[rows, cols]`.

    Returns:
        Those of its MLPs that run as one from then on, which the other functions take as `mlps`.

    Raises:
        BlastError: if the optimizer cannot take the parameters; nothing is changed then.
    """
    check_optimizer(optimizer, [parameter for unit in units for parameter in unit.parameters])
    to_sparse(model, {t.name: mask for unit, mask in zip(units, masks, strict=True) for t in unit.targets}, drop=True)
    for unit in units:
        old = list(unit.matrices)
        _point_at(unit, model)
        # One index a unit, whichever masks happen to be equal now: a resumed run has to share the same ones.
        shared = IndexBuffers(unit.targets[0].module.index.index)
        for target in unit.targets:
            target.module.index = shared
        for before, after in zip(old, unit.matrices, strict=True):
            weight, values = before.parameter, after.module.values

            def cut(tensor: Tensor, target: Target = before, index: BlockIndex = shared.index) -> Tensor:
                return gather_blocks(target.as_out_in(tensor), index)

            values.grad = None if weight.grad is None else cut(weight.grad)
            replace_parameter(optimizer, weight, values, cut)
    fuse_for_training(model)
    return [module for module in model.modules() if isinstance(module, TrainingMlp)]


@torch.no_grad()
def leave(model: nn.Module, optimizer: torch.optim.Optimizer, units: Sequence[Unit]) -> None:
    """Takes a model back to its masked-dense state, in place; arguments as for `enter`."""
    old = {unit.index: [target.module for target in unit.matrices] for unit in units}
    to_dense(model)
    for unit in units:
        _point_at(unit, model)
        for layer, target in zip(old[unit.index], unit.matrices, strict=True):

            def whole(blocks: Tensor, target: Target = target, index: BlockIndex = layer.index.index) -> Tensor:
                return target.as_out_in(scatter_blocks(blocks, index)).contiguous()

            values, weight = layer.values, target.parameter
            weight.grad = None if values.grad is None else whole(values.grad)
            replace_parameter(optimizer, values, weight, whole)


@torch.no_grad()
def repack(
    mlps: Sequence[TrainingMlp], optimizer: torch.optim.Optimizer, units: Sequence[Unit], masks: Sequence[Tensor]
) -> None:
    """Gives a model in its sparse state new masks: grown blocks and their moments are zero, dropped ones are gone.

    Grown blocks get their gradient of this step, if it was watched; the watch ends.
    """
    wanted = {unit.targets[0].module.index: mask.numpy() for unit, mask in zip(units, masks, strict=True)}
    layouts = change_layouts(wanted, mlps)
    for unit in units:
        before = unit.targets[0].module.index
        if before not in layouts:
            continue
        shared, remap = layouts[before]
        new: dict[int, nn.Parameter] = {}
        for target in unit.matrices:
            values, dense = target.module.values, unit.dense_gradient(target)
            made = nn.Parameter(remap.apply(values), requires_grad=values.requires_grad)
            if values.grad is not None:
                made.grad = remap.apply(values.grad) if dense is None else remap.apply_with_dense(values.grad, dense)
            replace_parameter(optimizer, values, made, remap.apply)
            new[id(values)] = made
        for target in unit.targets:
            layer = target.module
            layer._parameters["values"] = new[id(layer.values)]
            layer.index = shared
    detach_dense_gradients(units)
    for mlp in mlps:
        mlp.pack()


def settle(units: Sequence[Unit], settled: bool) -> None:
    """Says whether the masks will stay as they are, so that compiled graphs can hold the products.

    Said once: a graph that was compiled around them would not take them in later, but compile each layer by itself.
    """
    for unit in units:
        for target in unit.targets:
            target.module.masks_fixed = settled


def attach_dense_gradients(units: Sequence[Unit]) -> None:
    """Has the next backward passes make the dense gradient, for a mask update."""
    for unit in units:
        watches: dict[int, DenseGradient] = {}
        for target in unit.targets:
            layer = target.module
            if layer.dense_gradient is None:
                layer.dense_gradient = watches.setdefault(id(layer.values), DenseGradient(layer.values))


def retain_activations(mlps: Sequence[TrainingMlp], wanted: bool) -> None:
    """Has the MLPs keep what the next backward passes tell of them, or forget what they kept."""
    for mlp in mlps:
        mlp.saved_activations = [] if wanted else None


def can_recompute(mlps: Sequence[TrainingMlp], units: Sequence[Unit]) -> bool:
    """Whether the dense gradient of every watched layer follows from what the MLPs kept."""
    known = {layer for mlp in mlps if mlp.saved_activations and all_accumulate(mlp.layers) for layer in mlp.layers}
    return all(t.module in known for unit in units for t in unit.targets if t.module.dense_gradient is not None)


def recompute_dense_gradients(mlps: Sequence[TrainingMlp]) -> None:
    """Makes the dense gradients of watched layers from what the MLPs kept."""
    told = [mlp for mlp in mlps if mlp.saved_activations and all_accumulate(mlp.layers)]
    try:
        accumulate_dense_gradients([(mlp.layers, mlp.activation, mlp.saved_activations) for mlp in told])
    except BaseException:
        for layer in (layer for mlp in told for layer in mlp.layers):
            layer.dense_gradient.total = None
        raise


def finish_gradients(units: Sequence[Unit], step: int) -> None:
    """Brings the watched gradients together over all processes, and checks that they belong to the step.

    Raises:
        BlastError: if the gradients of live blocks were changed since `backward()`.
    """
    watched = [
        (target.name, target.module)
        for unit in units
        for target in unit.matrices
        if target.module.dense_gradient is not None
        and target.module.dense_gradient.total is not None
        and target.module.values.grad is not None
    ]
    for _, layer in watched:
        mean_over_ranks_(layer.dense_gradient.total)
    # Whoever scales or clips does it to all: the first and the last of them tell, and the GPU is waited for once.
    looked_at = watched[:: max(1, len(watched) - 1)]
    if not looked_at:
        return
    norms = [_difference_and_size(layer) for _, layer in looked_at]
    home = norms[0].device
    found = torch.stack([norm.to(home) for norm in norms]).tolist()
    for (name, _), (difference, size) in zip(looked_at, found, strict=True):
        # Written so that a gradient that is not finite passes: the choice of the mask names it.
        if difference > SAME_GRADIENT * size:
            raise BlastError(
                f"at the mask update of step {step} the gradient of '{name}' is not that of the backward "
                "passes before it; call sparsifier.step() right after backward(), before scaling or clipping."
            )


def _difference_and_size(layer: BlockLinear) -> Tensor:
    """How far the watched gradient is from the one that autograd gave, and the norm of that one `[2]`."""
    given, ours = layer.values.grad.float(), gather_blocks(layer.dense_gradient.total, layer.index.index).float()
    return torch.stack(((ours - given).norm(), given.norm()))


def detach_dense_gradients(units: Sequence[Unit]) -> None:
    """Gives the watched gradients up."""
    for unit in units:
        for target in unit.targets:
            layer = target.module
            if isinstance(layer, BlockLinear) and layer.dense_gradient is not None:
                layer.dense_gradient.close()
                layer.dense_gradient = None


def _point_at(unit: Unit, model: nn.Module) -> None:
    """Lets a unit stand for the modules that are in the model now under its names."""
    unit.targets = [replace(target, module=model.get_submodule(target.name)) for target in unit.targets]
    unit.matrices = list({id(parameter_of(target)): target for target in reversed(unit.targets)}.values())[::-1]
