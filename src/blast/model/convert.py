"""A whole model from dense to sparse and back, in place and without loss.

Sparse means: each matrix named by a mask is a `BlockLinear`, and its dense weight is gone. Everything else (names,
biases, dtype, device, gradient and training flags, tied weights, hooks) stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, as_block, tiles
from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.csr import BlockCSR, BlockIndex, block_of
from blast.block_sparse.sharding import refuse_sharded
from blast.errors import BlastError, unknown_name
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.training_mlp import TrainingMlp
from blast.model.module_replacement import is_dense, replace_modules, sparse_layers, unwrapped


def to_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    block: int | Sequence[int] | None = None,
    *,
    drop: bool = False,
) -> nn.Module:
    """Replaces the matrices named by `masks` by block-sparse ones that hold their live blocks alone.

    Matrices with equal masks share one index. A matrix that is block-sparse under that very mask already stays as it is
    (after training in the sparse state), and MLPs in training are put back as they were. The optimizer of a model that
    is trained on has to be made anew, since the weights are other parameters now.

    Args:
        model: Any model; changed in place.
        masks: For each matrix, by the name of its module in `model.named_modules()`, a bool mask
            `[out / b_out, in / b_in]`, True is live; the block shape follows from it and the weight.
        block: The block shape expected, checked if given.
        drop: Whether weights outside the mask may be thrown away; by default they must be zero.

    Returns:
        The same model.

    Raises:
        BlastError: if a name, mask or weight does not fit, weights would be lost, or the model is sharded
            (`fully_shard`). The model is untouched then.

    Example:
        >>> model = blast.to_sparse(model, masks)  # for instance `sparsifier.masks`
        >>> type(model.transformer.h[0].mlp.c_fc).__name__
        'BlockLinear'
    """
    whole, model = model, unwrapped(model)
    refuse_sharded(model)
    matrices = _matrices(model, masks)
    for matrix in matrices:
        _check(matrix, None if block is None else as_block(block), drop)
    _check_ties(model, matrices)

    indices: dict[object, IndexBuffers] = {}
    values: dict[int, nn.Parameter] = {}
    replacements: dict[int, BlockLinear] = {}
    for matrix in matrices:
        mask = matrix.mask.to(matrix.weight.device)
        key = (tuple(matrix.weight.shape), mask.device, tuple(mask.shape), mask.cpu().numpy().tobytes())
        if key not in indices:
            indices[key] = IndexBuffers(BlockIndex.from_mask(mask, tuple(matrix.weight.shape)))
        shared, parameter = indices[key], matrix.module._parameters["weight"]
        index = shared.index
        if id(parameter) not in values:
            live = BlockCSR.from_dense(matrix.weight, mask, index).values
            values[id(parameter)] = nn.Parameter(live, requires_grad=parameter.requires_grad)
        csr = BlockCSR(index, values[id(parameter)])
        replacements[id(matrix.module)] = BlockLinear.replacing(matrix.module, csr, shared)
    trained = {id(module): module.original for module in model.modules() if isinstance(module, TrainingMlp)}
    replace_modules(model, {**replacements, **trained})
    refuse_save_pretrained(model)
    return whole


def to_dense(model: nn.Module) -> nn.Module:
    """Gives every block-sparse matrix its dense layer back: the type it had, live blocks bit by bit, zeros elsewhere.

    Args:
        model: A model in its sparse state; changed in place. A dense model stays as it is.

    Returns:
        The same model.

    Example:
        >>> model = blast.to_dense(blast.to_sparse(model, masks))
        >>> type(model.transformer.h[0].mlp.c_fc).__name__
        'Conv1D'
    """
    from blast.model.fuse import unfuse  # it needs this module

    whole, model = model, unwrapped(unfuse(model))
    weights: dict[int, nn.Parameter] = {}
    replacements: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, BlockLinear):
            dense = module.dense_module()
            dense._parameters["weight"] = weights.setdefault(id(module.values), dense._parameters["weight"])
            replacements[id(module)] = dense
    replace_modules(model, replacements)
    for module in model.modules():
        if module.__dict__.get("save_pretrained") is _save_pretrained:
            del module.save_pretrained
    return whole


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model in its sparse state, by module name; empty for a dense model.

    Example:
        >>> found = blast.masks_of(blast.to_sparse(model, masks))
        >>> torch.equal(found["transformer.h.0.mlp.c_fc"], masks["transformer.h.0.mlp.c_fc"])
        True
    """
    return {name: layer.mask() for name, layer in sparse_layers(model).items()}


def refuse_save_pretrained(model: nn.Module) -> None:
    """Makes `save_pretrained` of a sparse model, and of each part of it, raise and name what to do instead."""
    for module in model.modules():
        holds = any(isinstance(part, BlockLinear) for part in module.modules())
        if holds and hasattr(type(module), "save_pretrained"):
            # On the instance: a folder saved by transformers would be read as randomly initialised dense matrices.
            module.save_pretrained = _save_pretrained


@dataclass(frozen=True, eq=False)
class _Matrix:
    name: str
    module: nn.Module
    mask: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight seen as `[out, in]`."""
        weight = self.module._parameters["weight"].detach()
        return weight.t() if is_conv1d(self.module) else weight


def _matrices(model: nn.Module, masks: Mapping[str, Tensor]) -> list[_Matrix]:
    modules = dict(model.named_modules(remove_duplicate=False))
    matrices: dict[int, _Matrix] = {}
    for name, mask in masks.items():
        if name not in modules:
            raise unknown_name("matrix", name, (key for key, module in modules.items() if is_dense(module)))
        module = modules[name]
        if isinstance(module, BlockLinear):
            if torch.equal(module.mask().cpu(), mask.cpu()):
                continue
            raise BlastError(
                f"'{name}' is block-sparse already, under another mask; call blast.to_dense(model) before giving new "
                "masks."
            )
        if not is_dense(module):
            raise BlastError(
                f"'{name}' is a {type(module).__name__}, which cannot be made block-sparse; "
                "name torch.nn.Linear or transformers Conv1D layers whose forward is their own."
            )
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, nn.MultiheadAttention):
            raise BlastError(
                f"'{name}' belongs to a torch.nn.MultiheadAttention, which reads the weight past the layer; "
                "leave it out of the masks."
            )
        first = matrices.setdefault(id(module), _Matrix(name, module, mask))
        _check_same(first, _Matrix(name, module, mask))
    return list(matrices.values())


def _check(matrix: _Matrix, expected: BlockShape | None, drop: bool) -> None:
    try:
        block = block_of(matrix.mask, tuple(matrix.weight.shape))
    except BlastError as error:
        raise BlastError(f"'{matrix.name}': {error}") from None
    if expected is not None and block != expected:
        raise BlastError(
            f"the mask of '{matrix.name}' has blocks of {block}, not {expected}; "
            "leave `block` out, or give masks of that block."
        )
    if drop or matrix.weight.is_meta:
        return
    filled = (tiles(matrix.weight, block) != 0).any(dim=3).any(dim=1)  # [rows, cols]
    lost = int((filled & ~matrix.mask.to(filled.device)).sum())
    if lost:
        raise BlastError(
            f"'{matrix.name}' has {lost} of {filled.numel()} blocks that are not zero but lie outside its mask; "
            "clear them first (Sparsifier.step() does), or pass drop=True to lose them."
        )


def _check_ties(model: nn.Module, matrices: list[_Matrix]) -> None:
    by_module = {id(matrix.module): matrix for matrix in matrices}
    by_weight: dict[int, _Matrix] = {}
    for matrix in matrices:
        _check_same(by_weight.setdefault(id(matrix.module._parameters["weight"]), matrix), matrix)
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            matrix = by_weight.get(id(parameter))
            if matrix is not None and not (leaf == "weight" and id(module) in by_module):
                raise BlastError(
                    f"the weight of '{matrix.name}' is also '{path}.{leaf}', which stays dense, so that they would "
                    "come apart; leave it out of the masks, or untie them."
                )


def _check_same(first: _Matrix, second: _Matrix) -> None:
    same = first.mask is second.mask or torch.equal(first.mask.cpu(), second.mask.cpu())
    if not same or is_conv1d(first.module) != is_conv1d(second.module):
        raise BlastError(
            f"'{first.name}' and '{second.name}' are one tied weight, but their masks differ; give both the same mask."
        )


def _save_pretrained(*_args: object, **_kwargs: object) -> None:
    raise BlastError(
        "save_pretrained cannot store block-sparse weights; use blast.save(model, folder), "
        "or blast.to_dense(model) first for a dense folder."
    )
