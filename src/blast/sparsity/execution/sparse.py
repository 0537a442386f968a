"""The sparse state of a model in training: parameters, gradients and optimizer state of live blocks only.

The switch from and to the masked-dense state is possible at any step and does not change the training. It cuts values,
moments and the gradient of the step into blocks, or joins them, and replaces the parameters in the optimizer.
"""

from __future__ import annotations

import math
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
from blast.sparsity.execution.optimizer_state import check_elementwise
from blast.sparsity.mask_groups import MaskGroup, parameter_of, sparse_layer
from blast.sparsity.optimizers import Optimizers

# Largest relative difference between the accumulated gradient and autograd's; both are rounded in half precision.
SAME_GRADIENT = 0.1
# Largest relative distance of their ratio from a power of two, the factor of a gradient scaler.
SAME_FACTOR = 0.01


@torch.no_grad()
def switch_to_sparse(
    model: nn.Module, optimizers: Optimizers, mask_groups: Sequence[MaskGroup], masks: Sequence[Tensor]
) -> list[TrainingMlp]:
    """Switches a model from the masked-dense to the sparse state, in place.

    Args:
        model: The model. The values of its dead blocks are lost.
        optimizers: The optimizers over its parameters.
        mask_groups: Its mask groups. Their modules are the block-sparse ones afterwards.
        masks: For each mask group, bool `[rows, cols]`.

    Returns:
        The MLPs that run as one operator from now on; the argument `mlps` of the other functions.

    Raises:
        BlastError: if an optimizer cannot train live blocks only. Nothing is changed then.
    """
    check_elementwise(optimizers, mask_groups)
    by_name = {t.name: mask for group, mask in zip(mask_groups, masks, strict=True) for t in group.targets}
    to_sparse(model, by_name, drop=True)
    for group in mask_groups:
        old = list(group.matrices)
        _set_modules(group, model)
        # One index for each mask group, even if two masks are equal now: a resumed run must share the same ones.
        shared = IndexBuffers(sparse_layer(group.targets[0]).index.index)
        for target in group.targets:
            sparse_layer(target).index = shared
        for before, after in zip(old, group.matrices, strict=True):
            weight, values = before.parameter, sparse_layer(after).values

            def cut(tensor: Tensor, target: Target = before, index: BlockIndex = shared.index) -> Tensor:
                return gather_blocks(target.as_out_in(tensor), index)

            values.grad = None if weight.grad is None else cut(weight.grad)
            optimizers.replace_parameter(weight, values, cut)
    fuse_for_training(model)
    return [module for module in model.modules() if isinstance(module, TrainingMlp)]


@torch.no_grad()
def switch_to_masked(model: nn.Module, optimizers: Optimizers, mask_groups: Sequence[MaskGroup]) -> None:
    """Switches a model back to the masked-dense state, in place; arguments as for `switch_to_sparse`."""
    old = {group.index: [sparse_layer(target) for target in group.matrices] for group in mask_groups}
    to_dense(model)
    for group in mask_groups:
        _set_modules(group, model)
        for layer, target in zip(old[group.index], group.matrices, strict=True):

            def join(blocks: Tensor, target: Target = target, index: BlockIndex = layer.index.index) -> Tensor:
                return target.as_out_in(scatter_blocks(blocks, index)).contiguous()

            values, weight = layer.values, target.parameter
            weight.grad = None if values.grad is None else join(values.grad)
            optimizers.replace_parameter(values, weight, join)


@torch.no_grad()
def change_layout(
    mlps: Sequence[TrainingMlp],
    optimizers: Optimizers,
    mask_groups: Sequence[MaskGroup],
    masks: Sequence[Tensor],
) -> None:
    """Gives a model in the sparse state new masks, and stops accumulating dense gradients.

    Grown blocks and their moments are zero; dropped blocks are removed. Grown blocks get their gradient of this step if
    the dense gradient was accumulated.
    """
    wanted = {sparse_layer(g.targets[0]).index: mask.numpy() for g, mask in zip(mask_groups, masks, strict=True)}
    layouts = change_layouts(wanted, mlps)
    for group in mask_groups:
        before = sparse_layer(group.targets[0]).index
        if before not in layouts:
            continue
        shared, remap = layouts[before]
        new: dict[int, nn.Parameter] = {}
        for target in group.matrices:
            values, dense = sparse_layer(target).values, group.dense_gradient(target)
            made = nn.Parameter(remap.apply(values), requires_grad=values.requires_grad)
            if values.grad is not None:
                made.grad = remap.apply(values.grad) if dense is None else remap.apply_with_dense(values.grad, dense)
            optimizers.replace_parameter(values, made, remap.apply)
            new[id(values)] = made
        for target in group.targets:
            layer = sparse_layer(target)
            layer._parameters["values"] = new[id(layer.values)]
            layer.index = shared
    detach_dense_gradients(mask_groups)
    for mlp in mlps:
        mlp.prepare()


def set_masks_fixed(mask_groups: Sequence[MaskGroup], fixed: bool) -> None:
    """Tells the layers whether their masks are fixed, so that compiled graphs can include the products.

    Called once, at the switch. A graph compiled while masks changed does not include the products later either; a
    change of the flag would only compile each layer by itself.
    """
    for group in mask_groups:
        for target in group.targets:
            sparse_layer(target).masks_fixed = fixed


def attach_dense_gradients(mask_groups: Sequence[MaskGroup]) -> None:
    """Accumulates dense gradients in the next backward passes, for a mask update."""
    for group in mask_groups:
        accumulators: dict[int, DenseGradient] = {}
        for target in group.targets:
            layer = sparse_layer(target)
            if layer.dense_gradient is None:
                layer.dense_gradient = accumulators.setdefault(id(layer.values), DenseGradient(layer.values))


def detach_dense_gradients(mask_groups: Sequence[MaskGroup]) -> None:
    """Stops accumulating dense gradients and frees them."""
    for group in mask_groups:
        for target in group.targets:
            layer = target.module
            if isinstance(layer, BlockLinear) and layer.dense_gradient is not None:
                layer.dense_gradient.close()
                layer.dense_gradient = None


def retain_activations(mlps: Sequence[TrainingMlp], wanted: bool) -> None:
    """Retains the activations of the next backward passes; False frees those retained so far."""
    for mlp in mlps:
        mlp.saved_activations = [] if wanted else None


def can_recompute(mlps: Sequence[TrainingMlp], mask_groups: Sequence[MaskGroup]) -> bool:
    """Whether the dense gradient of every accumulating layer follows from the retained activations."""
    known = {layer for mlp in mlps if mlp.saved_activations and all_accumulate(mlp.layers) for layer in mlp.layers}
    layers = [sparse_layer(target) for group in mask_groups for target in group.targets]
    return all(layer in known for layer in layers if layer.dense_gradient is not None)


def recompute_dense_gradients(mlps: Sequence[TrainingMlp]) -> None:
    """Computes the dense gradients of accumulating layers from the retained activations; all or none of them."""
    retained = [(mlp, mlp.saved_activations) for mlp in mlps if mlp.saved_activations and all_accumulate(mlp.layers)]
    try:
        accumulate_dense_gradients([(mlp.layers, mlp.activation_name, saved) for mlp, saved in retained])
    except BaseException:
        for gradient in (layer.dense_gradient for mlp, _ in retained for layer in mlp.layers):
            if gradient is not None:
                gradient.total = None
        raise


def reduce_dense_gradients(mask_groups: Sequence[MaskGroup], step: int) -> None:
    """Averages the dense gradients over all processes, and checks that they belong to the step.

    A gradient scaler may have unscaled the gradients: the dense gradients are then unscaled too.

    Raises:
        BlastError: if the gradients of live blocks were changed after `backward()` in another way.
    """
    found: list[tuple[str, BlockLinear, Tensor, Tensor]] = []
    for group in mask_groups:
        for target in group.matrices:
            layer, dense = sparse_layer(target), group.dense_gradient(target)
            if dense is not None and layer.values.grad is not None:
                found.append((target.name, layer, dense, layer.values.grad))
    for _, _, dense, _ in found:
        mean_over_ranks_(dense)
    # Scaling or clipping changes every gradient. So the first and the last are enough, in one wait for the GPU.
    checked = found[:: max(1, len(found) - 1)]
    if not checked:
        return
    products = [_products(layer, dense, grad) for _, layer, dense, grad in checked]
    home = products[0].device
    values = torch.stack([product.to(home) for product in products]).tolist()
    # A product that is not finite says nothing; `keep_and_grow_scores` reports it.
    known = [(name, _factor(*each)) for (name, *_), each in zip(checked, values, strict=True) if _finite(*each)]
    scale = known[0][1] if known else 1.0
    for name, factor in known:
        if scale is None or factor != scale:
            raise BlastError(
                f"at the mask update of step {step} the gradient of '{name}' differs from that of backward(); "
                "call sparsifier.step() right after backward(), before scaling or clipping."
            )
    if scale is not None and scale != 1:
        for _, _, dense, _ in found:
            dense *= scale


def _products(layer: BlockLinear, dense: Tensor, grad: Tensor) -> Tensor:
    """Inner products of the accumulated gradient `a` and autograd's `g` at live blocks: `a·a`, `a·g`, `g·g`."""
    given, ours = grad.float(), gather_blocks(dense, layer.index.index).float()
    return torch.stack((ours.square().sum(), (ours * given).sum(), given.square().sum()))


def _finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def _factor(ours: float, both: float, given: float) -> float | None:
    """The factor between two gradients: 1, or that of a gradient scaler, which is a power of two.

    Args:
        ours: Square of the norm of the accumulated gradient.
        both: Inner product of the two.
        given: Square of the norm of autograd's gradient.

    Returns:
        The factor; None if the gradients differ by more than rounding, or by another factor.
    """
    factor = 1.0
    if ours > 0 and both > 0:
        power = 2.0 ** round(math.log2(both / ours))
        factor = power if abs(both / ours / power - 1) < SAME_FACTOR else 1.0
    difference = given - 2 * factor * both + factor**2 * ours
    return factor if difference <= SAME_GRADIENT**2 * given else None


def _set_modules(group: MaskGroup, model: nn.Module) -> None:
    """Points a mask group to the modules that the model now has under its names."""
    group.targets = [replace(target, module=model.get_submodule(target.name)) for target in group.targets]
    group.matrices = list({id(parameter_of(target)): target for target in reversed(group.targets)}.values())[::-1]
