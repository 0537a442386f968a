"""From block-sparse layers to fused MLPs for inference, and back, in place and without loss.

An MLP qualifies by what it holds and by what it computes: its children are two or three `BlockLinear`, one activation
and dropout; the activation is told by its values; and the fused form has to give the same output as the MLP itself on
random input, once for each class of MLP, before any of that class is replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from blast_kernels.common.quantize import HALVES
from torch import nn

from blast.errors import BlastError, unknown_name
from blast.layers.block_linear import HOOKS, BlockLinear
from blast.layers.mlp_autograd import can_train
from blast.layers.sparse_mlp import ACTIVATIONS, WEIGHTS, Roles, SparseMlp
from blast.layers.training_mlp import TrainingMlp
from blast.model.discovery import find_mlps
from blast.model.module_replacement import replace_modules, unwrapped
from blast.model.target import Mlp

# Largest ‖fused − unfused‖ / ‖unfused‖ by dtype: both round the hidden activations, but sum in another order.
SAME = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def fuse(model: nn.Module, *, skip_dead: bool = True, dense_fallback: bool = False, weights: str = "same") -> nn.Module:
    """Replaces each block-sparse MLP by a `SparseMlp`, which runs it in two kernels where no gradient is needed.

    Names, parameters, state dict and checkpoints stay as they are; `unfuse` takes it back. MLPs that do not qualify
    (another structure, a gate with a bias, a dense matrix, hooks on their layers) are left alone. While fused, the
    blocks of the gate and up projections are held twice, or with fp8 weights all blocks once more in fp8.

    Args:
        model: A model in its sparse state (`blast.to_sparse`); changed in place.
        skip_dead: Leave out hidden blocks that are provably zero or that nobody reads: the same result, faster.
        dense_fallback: Run dense where the table of this GPU says dense is faster; holds dense weights as well.
        weights: `same`: as the layers hold them. `fp8` (e4m3, a scale for each block): half the bytes to read, so
            faster where few tokens wait for memory; float16 or bfloat16 models, and no longer the same result:
            `quantization_errors` states the difference. A fused model is fused again if it holds the other.

    Returns:
        The same model.

    Raises:
        BlastError: if no MLP qualifies (the message gives the reason for the first), or `weights` is unknown or does
            not go with the dtype of the model.

    Example:
        >>> model = blast.fuse(blast.to_sparse(model, masks)).eval()
        >>> type(model.transformer.h[0].mlp).__name__
        'SparseMlp'
    """
    if weights not in WEIGHTS:
        raise unknown_name("form of weights", weights, WEIGHTS)
    whole, model = model, unwrapped(model)
    replacements: dict[int, SparseMlp] = {}
    reasons: list[str] = []
    trusted: dict[tuple, bool] = {}
    for mlp in _sparse_mlps(model):
        place = module = model.get_submodule(mlp.name)
        if isinstance(place, SparseMlp):
            if place.weights == weights and not isinstance(place, TrainingMlp):
                continue
            module = place.original
        reason = _reason_against(module, mlp)
        if reason is None:
            parts = (module, _roles(mlp), _activation(module), skip_dead, dense_fallback)
            fused = SparseMlp(*parts, weights)
            if weights == "fp8" and fused.layers[0].values.dtype not in HALVES:
                dtype = str(fused.layers[0].values.dtype).removeprefix("torch.")
                raise BlastError(
                    f"fp8 weights are multiplied with float16 or bfloat16, but '{mlp.name}' is {dtype}; "
                    "cast the model first, for instance with model.bfloat16()."
                )
            kind = (type(module), fused.activation, fused.gate)
            if kind not in trusted:
                trusted[kind] = _agrees(SparseMlp(*parts) if weights == "fp8" else fused)
            reason = None if trusted[kind] else f"{type(module).__name__} computes something else than its parts say"
        if reason is None:
            if place is model:
                raise BlastError("the model is itself one MLP; wrap it, for instance in torch.nn.Sequential.")
            replacements[id(place)] = fused
        else:
            reasons.append(f"'{mlp.name}': {reason}")
    if not replacements and not any(isinstance(module, SparseMlp) for module in model.modules()):
        why = f" ({reasons[0]})" if reasons else ""
        raise BlastError(
            f"no MLP of this model can be fused{why}; make its MLPs block-sparse first, "
            "with blast.to_sparse(model, masks)."
        )
    replace_modules(model, replacements)
    return whole


def unfuse(model: nn.Module) -> nn.Module:
    """Puts the MLPs back that `fuse` replaced.

    Args:
        model: Any model; changed in place.

    Returns:
        The same model.

    Example:
        >>> model = blast.unfuse(blast.fuse(blast.to_sparse(model, masks)))
        >>> type(model.transformer.h[0].mlp).__name__
        'GPT2MLP'
    """
    whole, model = model, unwrapped(model)
    replace_modules(model, {id(m): m.original for m in model.modules() if isinstance(m, SparseMlp)})
    return whole


def fuse_for_training(model: nn.Module) -> nn.Module:
    """Replaces each block-sparse MLP that the training operator takes by a `TrainingMlp`; the others are left alone.

    Args:
        model: A model in its sparse state; changed in place. `unfuse` takes it back.

    Returns:
        The same model.
    """
    whole, model = model, unwrapped(model)
    replacements: dict[int, TrainingMlp] = {}
    trusted: dict[tuple, bool] = {}
    for mlp in _sparse_mlps(model):
        module = model.get_submodule(mlp.name)
        if isinstance(module, SparseMlp) or module is model or _reason_against(module, mlp) is not None:
            continue
        made = TrainingMlp(module, _roles(mlp), _activation(module))
        kind = (type(module), made.activation, made.gate)
        if not can_train(made.layers):
            continue
        if kind not in trusted:
            trusted[kind] = _agrees(made)
        if trusted[kind]:
            replacements[id(module)] = made
    replace_modules(model, replacements)
    return whole


def quantization_errors(model: nn.Module) -> dict[str, float]:
    """What fp8 weights cost: the relative error of the output of each fused MLP, by name.

    `‖out − full‖ / ‖full‖` on 64 tokens of normally distributed input; `SparseMlp.quantization_error(x)` takes others.

    Args:
        model: A model that `fuse` was given; MLPs with weights as they were have an error of 0.

    Example:
        >>> model = blast.fuse(blast.to_sparse(model.bfloat16(), masks), weights="fp8")
        >>> blast.quantization_errors(model)
        {'transformer.h.0.mlp': 0.0..., 'transformer.h.1.mlp': 0.0...}
    """
    fused = {name: module for name, module in unwrapped(model).named_modules() if isinstance(module, SparseMlp)}
    return {name: 0.0 if isinstance(mlp, TrainingMlp) else mlp.quantization_error() for name, mlp in fused.items()}


def _sparse_mlps(model: nn.Module) -> Iterator[Mlp]:
    """MLPs with a block-sparse matrix, found in a copy of the tree of modules where these look dense."""
    for mlp in find_mlps(_shadow(model, {})):
        if any(isinstance(model.get_submodule(target.name), BlockLinear) for target in mlp.targets):
            yield mlp


def _shadow(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """The tree of modules without any weight of `BlockLinear`: `nn.Linear` on the meta device stands in for each."""
    if id(module) not in made:
        if isinstance(module, BlockLinear):
            made[id(module)] = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        else:
            made[id(module)] = shell = copy.copy(module)
            shell._modules = {name: child and _shadow(child, made) for name, child in module._modules.items()}
    return made[id(module)]


def _roles(mlp: Mlp) -> Roles:
    up, down, gate = (target and target.name.rpartition(".")[2] for target in (mlp.up, mlp.down, mlp.gate))
    return Roles(up, down, gate)


def _reason_against(module: nn.Module, mlp: Mlp) -> str | None:
    """Why an MLP cannot be fused; None if it can."""
    matrices = {}
    for target in mlp.targets:
        path, _, leaf = target.name.rpartition(".")
        if path != mlp.name:
            return "its matrices do not hang in one module"
        matrices[leaf] = module._modules[leaf]
    if not all(isinstance(layer, BlockLinear) for layer in matrices.values()):
        return "not all of its matrices are block-sparse"
    if any(getattr(layer, hooks) for layer in matrices.values() for hooks in HOOKS[:-1]):
        return "a hook on one of its layers would no longer be called"
    others = [child for name, child in module._modules.items() if name not in matrices]
    if len([child for child in others if not isinstance(child, nn.Dropout)]) != 1 or _activation(module) is None:
        return "it holds something else than matrices, dropout and one activation that is silu or gelu"
    if mlp.gate is not None and any(matrices[name].bias is not None for name in list(matrices)[:2]):
        return "its gate has a bias"
    blocks = {matrices[name].block for name in list(matrices)[:-1]}
    return None if len(blocks) == 1 else "gate and up have different blocks"


def _activation(module: nn.Module) -> str | None:
    """Name of the activation among the children of an MLP, told by its values."""
    found = [child for child in module.children() if not isinstance(child, BlockLinear | nn.Dropout)]
    if len(found) != 1 or any(True for _ in found[0].parameters()):
        return None
    x = torch.linspace(-6, 6, 601)
    with torch.no_grad():
        try:
            y = found[0](x)
        except (TypeError, RuntimeError):
            return None
        fits = [name for name, function in ACTIVATIONS.items() if torch.allclose(y, function(x), rtol=0, atol=2e-6)]
    return fits[0] if fits else None


def _agrees(fused: SparseMlp) -> bool:
    """Whether the fused MLP gives what the MLP itself gives on random input; its dropout must be off for that."""
    values = fused.layers[0].values
    if values.is_meta:
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, fused.layers[0].in_features, generator=generator).to(values.device, values.dtype)
    training = [module for module in fused.modules() if module.training]
    with torch.no_grad():
        fused.eval()
        expected = fused.original.forward(x).double()
        difference, scale = (fused.forward(x).double() - expected).norm(), expected.norm()
        for module in training:
            module.training = True
        fused.original.training = fused.training
    return bool(difference <= SAME.get(values.dtype, 1e-4) * scale)
