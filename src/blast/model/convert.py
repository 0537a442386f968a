"""Converts a whole model from dense to sparse and back, in place and without loss.

In a sparse model each matrix with a mask is a `BlockLinear` and has no dense weight. Experts in three-dimensional
parameters are a `SparseExperts` with such layers. Everything else (names, biases,
dtype, device, gradient and training flags, tied weights, hooks) does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, as_block, tiles
from blast.block_sparse.csr import BlockCSR, BlockIndex, block_of
from blast.block_sparse.sharding import refuse_sharded
from blast.errors import BlastError, check_argument, unknown_name
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.sparse_experts import SparseExperts
from blast.layers.training_mlp import TrainingMlp
from blast.model.discovery import all_matrices
from blast.model.eligibility import is_linear_like, refuse_ineligible
from blast.model.experts import find_experts, unsupported_experts
from blast.model.fuse import unfuse
from blast.model.module_replacement import replace_modules, sparse_layers, unwrapped, weight_parameter
from blast.model.sparse_modules import SparseMatrix, check_all_experts, sparse_modules
from blast.model.state_dicts import check_state_dicts, uncheck_state_dicts
from blast.model.target import Target


def to_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    block: int | Sequence[int] | None = None,
    *,
    drop: bool = False,
) -> nn.Module:
    """Replaces the matrices named by `masks` by block-sparse ones that store only their live blocks.

    Matrices with equal masks share one index. A matrix that is already block-sparse with the same mask does not change.
    MLPs that were fused for training become ordinary modules again. To train on, create a new optimizer: the weights
    are new parameters. A model on the meta device stays there; `load_state_dict(state, assign=True)` fills it.

    Args:
        model: Any model; changed in place.
        masks: For each matrix, by its name in `model.named_modules()`, a bool mask `[out / b_out, in / b_in]`, True is
            live. The shapes of mask and weight give the block shape. Expert 3 of a three-dimensional parameter has the
            name of the parameter and `.3`; all of its experts need masks.
        block: The expected block shape; checked if given.
        drop: Whether to discard weights outside the masks. By default they must be zero.

    Returns:
        The same model.

    Raises:
        BlastError: if a name, mask or weight does not fit, weights would be lost, or the model is sharded
            (`fully_shard`). Then the model is not changed.

    Example:
        >>> model = blast.to_sparse(model, masks)  # for instance `sparsifier.masks`
        >>> type(model.transformer.h[0].mlp.c_fc).__name__
        'BlockLinear'
    """
    whole, model = model, unwrapped(model)
    refuse_sharded(model)
    matrices = _matrices(model, masks)
    check_all_experts([matrix.target for matrix in matrices], "the masks")
    for matrix in matrices:
        _check(matrix, None if block is None else as_block(block), drop)
    _check_ties(model, matrices)

    indices: dict[object, IndexBuffers] = {}
    values: dict[object, nn.Parameter] = {}
    made: list[SparseMatrix] = []
    for target, given in matrices:
        weight, mask = target.weight, given.cpu()
        key = (target.shape, weight.device, tuple(mask.shape), mask.numpy().tobytes())
        if key not in indices:
            indices[key] = IndexBuffers(BlockIndex.from_mask(mask, target.shape).to(weight.device))
        index = indices[key].index
        if target.key not in values:
            live = _live_blocks(weight, mask, index)
            values[target.key] = nn.Parameter(live, requires_grad=target.parameter.requires_grad)
        made.append(SparseMatrix(target, BlockCSR(index, values[target.key]), indices[key]))
    trained = {id(module): module.original for module in model.modules() if isinstance(module, TrainingMlp)}
    replace_modules(model, {**sparse_modules(made), **trained})
    refuse_save_pretrained(model)
    check_state_dicts(model)
    return whole


def to_dense(model: nn.Module) -> nn.Module:
    """Replaces every block-sparse matrix by its dense layer: of its former type, with zeros outside the live blocks.

    Args:
        model: A sparse model; changed in place. A dense model does not change.

    Returns:
        The same model.

    Example:
        >>> model = blast.to_dense(blast.to_sparse(model, masks))
        >>> type(model.transformer.h[0].mlp.c_fc).__name__
        'Conv1D'
    """
    whole, model = model, unwrapped(unfuse(model))
    weights: dict[int, nn.Parameter] = {}
    experts = [module for module in model.modules() if isinstance(module, SparseExperts)]
    replacements: dict[int, nn.Module] = {id(module): module.dense_module() for module in experts}
    inside = {layer for module in experts for layer in module.modules()}
    for module in model.modules():
        if isinstance(module, BlockLinear) and module not in inside:
            dense = module.dense_module()
            dense._parameters["weight"] = weights.setdefault(id(module.values), weight_parameter(dense))
            replacements[id(module)] = dense
    replace_modules(model, replacements)
    uncheck_state_dicts(model)
    for module in model.modules():
        if module.__dict__.get("save_pretrained") is _save_pretrained:
            del module.__dict__["save_pretrained"]
    return whole


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a sparse model by module name, bool `[out / b_out, in / b_in]`; empty for a dense model.

    Example:
        >>> found = blast.masks_of(blast.to_sparse(model, masks))
        >>> torch.equal(found["transformer.h.0.mlp.c_fc"], masks["transformer.h.0.mlp.c_fc"])
        True
    """
    return {name: layer.mask() for name, layer in sparse_layers(model).items()}


def refuse_save_pretrained(model: nn.Module) -> None:
    """Makes `save_pretrained` of a sparse model, and of each of its modules, raise an error that says what to do."""
    for module in model.modules():
        sparse = any(isinstance(part, BlockLinear) for part in module.modules())
        if sparse and hasattr(type(module), "save_pretrained"):
            # Set on the instance. Loading such a folder with transformers would give random dense matrices.
            module.__dict__["save_pretrained"] = _save_pretrained


class _Matrix(NamedTuple):
    target: Target
    mask: Tensor


def _live_blocks(weight: Tensor, mask: Tensor, index: BlockIndex) -> Tensor:
    """The live blocks of a weight `[out, in]`; without values on the meta device."""
    if weight.is_meta:
        return weight.new_empty(index.nnz, *index.block)
    return BlockCSR.from_dense(weight, mask, index).values


def _matrices(model: nn.Module, masks: Mapping[str, Tensor]) -> list[_Matrix]:
    remedy = "a mapping from names of matrices to bool masks, for instance sparsifier.masks"
    check_argument("the argument `masks`", masks, Mapping, remedy)
    modules = dict(model.named_modules(remove_duplicate=False))
    experts = {target.name: target for each in find_experts(model) for target in each.targets}
    matrices: dict[object, _Matrix] = {}
    for name, mask in masks.items():
        check_argument("a name in `masks`", name, str, remedy)
        check_argument(f"the mask of '{name}'", mask, Tensor, "a bool tensor, for instance torch.as_tensor(mask)")
        layer = modules.get(name)
        if isinstance(layer, BlockLinear):
            if torch.equal(layer.mask().cpu(), mask.cpu()):
                continue
            raise BlastError(
                f"'{name}' is already block-sparse with another mask; call blast.to_dense(model) before giving new "
                "masks."
            )
        target = experts[name] if name in experts else _linear(model, modules, name)
        matrix = _Matrix(target, mask)
        _check_same(matrices.setdefault((id(target.module), target.expert), matrix), matrix)
    return list(matrices.values())


def _linear(model: nn.Module, modules: Mapping[str, nn.Module], name: str) -> Target:
    """The linear layer with this name.

    Raises:
        BlastError: if there is none, or it cannot be made block-sparse.
    """
    if name not in modules:
        for path, reason in unsupported_experts(model).items():
            if name.startswith(f"{path}."):
                raise BlastError(f"'{name}' cannot be made block-sparse because {reason}; leave it out of the masks.")
        raise unknown_name("matrix", name, (target.name for target in all_matrices(model)))
    module = modules[name]
    if not is_linear_like(module):
        raise BlastError(
            f"'{name}' is a {type(module).__name__}, which cannot be made block-sparse; "
            "name torch.nn.Linear or transformers Conv1D layers in the masks."
        )
    refuse_ineligible(modules, [name], "leave it out of the masks", on_meta=True)
    return Target(name, module, "other", None)


def _check(matrix: _Matrix, expected: BlockShape | None, drop: bool) -> None:
    target, mask = matrix
    try:
        block = block_of(mask, target.shape)
    except BlastError as error:
        raise BlastError(f"'{target.name}': {error}") from None
    if expected is not None and block != expected:
        raise BlastError(
            f"the mask of '{target.name}' has blocks of {block}, not {expected}; "
            "leave `block` out, or give masks of that block."
        )
    if drop or target.parameter.is_meta:
        return
    filled = (tiles(target.weight, block) != 0).any(dim=3).any(dim=1)  # [rows, cols]
    lost = int((filled & ~mask.to(filled.device)).sum())
    if lost:
        raise BlastError(
            f"'{target.name}' has {lost} of {filled.numel()} blocks that are not zero but lie outside its mask; "
            "clear them first (Sparsifier.step() does), or pass drop=True to lose them."
        )


def _check_ties(model: nn.Module, matrices: list[_Matrix]) -> None:
    places = {(id(target.module), target.parameter_name.rpartition(".")[2]) for target, _ in matrices}
    by_key: dict[object, _Matrix] = {}
    for matrix in matrices:
        _check_same(by_key.setdefault(matrix.target.key, matrix), matrix)
    by_parameter = {id(target.parameter): target for target, _ in matrices}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            tied = by_parameter.get(id(parameter))
            if tied is not None and (id(module), leaf) not in places:
                raise BlastError(
                    f"the weight of '{tied.name}' is also '{path}.{leaf}', which stays dense, so the tie would "
                    "be lost; leave it out of the masks, or untie them."
                )


def _check_same(first: _Matrix, second: _Matrix) -> None:
    same = first.mask is second.mask or torch.equal(first.mask.cpu(), second.mask.cpu())
    if not same or first.target.transposed != second.target.transposed:
        raise BlastError(
            f"'{first.target.name}' and '{second.target.name}' are one tied weight, but their masks differ; "
            "give both the same mask."
        )


def _save_pretrained(*_args: object, **_kwargs: object) -> None:
    raise BlastError(
        "save_pretrained cannot store block-sparse weights; use blast.save(model, folder), "
        "or blast.export_dense(model, folder) for a dense folder that any tool opens."
    )
