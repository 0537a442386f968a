"""Fuses block-sparse layers to whole MLPs, and unfuses them, in place and without loss.

An MLP qualifies if its children are two or three `BlockLinear`, one activation and dropout. The activation is
recognised by its values. Before an MLP of a class is replaced, its fused form must give the same output for random
input.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import cast

import torch
from blast_kernels.common.quantize import HALVES
from torch import nn

from blast.errors import BlastError, unknown_name
from blast.layers.block_linear import BlockLinear
from blast.layers.hooked import HOOKS
from blast.layers.mlp_autograd import can_train
from blast.layers.sparse_experts import SparseExperts
from blast.layers.sparse_mlp import ACTIVATIONS, WEIGHTS, Roles, SparseMlp
from blast.layers.training_mlp import TrainingMlp
from blast.model.agreement import agree, in_eval_mode
from blast.model.discovery import find_mlps
from blast.model.eligibility import STATE_HOOKS
from blast.model.module_replacement import replace_modules, sparse_layers, unwrapped
from blast.model.target import Mlp

NOT_FINITE = "its output is not finite; look for NaN or infinity in its weights"


def fuse(model: nn.Module, *, skip_dead: bool = True, dense_fallback: bool = False, weights: str = "same") -> nn.Module:
    """Replaces each block-sparse MLP by a `SparseMlp`, which runs it in two kernels if no gradient is needed.

    Names, parameters, state dict and checkpoints do not change. `unfuse` undoes it. MLPs that do not qualify (another
    structure, a gate with a bias, a dense matrix, hooks on their layers) do not change. The fused kernels read the
    parameters of the layers, so each weight is stored once.

    With fp8 weights, the fp8 blocks are stored in the place of the parameters, which takes half the memory. The model
    cannot be trained then. `unfuse` makes parameters of them again, with the rounded weights.

    Args:
        model: A sparse model (`blast.to_sparse`); changed in place.
        skip_dead: Skip hidden blocks that are always zero or that no block reads: the same result, faster.
        dense_fallback: Run dense where the table of this GPU says dense is faster. Each such call computes the dense
            weights again from the blocks.
        weights: `same`: in the dtype of the layers. `fp8` (e4m3, a scale for each block): half the bytes to read, which
            is faster for few tokens and large matrices. It needs a float16 or bfloat16 model and changes the result;
            `quantization_errors` gives the difference. A fused model with other weights is fused again.

    Returns:
        The same model.

    Raises:
        BlastError: if no MLP qualifies (the message gives the first reason), or if `weights` is unknown or does not
            fit the dtype of the model.

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
    verified: dict[tuple[object, ...], str | None] = {}
    for mlp in _sparse_mlps(model):
        place = module = model.get_submodule(mlp.name)
        if isinstance(place, SparseMlp):
            if place.weights == weights and not isinstance(place, TrainingMlp):
                continue
            module = place.original
        reason = _reason_against(module, mlp)
        if reason is None:
            build = partial(SparseMlp, module, _roles(mlp), cast(str, _activation(module)), skip_dead, dense_fallback)
            fused = build()
            if weights == "fp8" and fused.layers[0].values.dtype not in HALVES:
                dtype = str(fused.layers[0].values.dtype).removeprefix("torch.")
                raise BlastError(
                    f"fp8 weights are multiplied with float16 or bfloat16, but '{mlp.name}' is {dtype}; "
                    "cast the model first, for instance with model.bfloat16()."
                )
            reason = _reason_by_trial(module, fused, verified)
        if reason is None:
            if place is model:
                raise BlastError("the model is itself one MLP; wrap it, for instance in torch.nn.Sequential.")
            replacements[id(place)] = fused
        else:
            reasons.append(f"'{mlp.name}': {reason}")
    experts = [name for name, module in model.named_modules() if isinstance(module, SparseExperts)]
    reasons += [f"'{name}': experts run one after the other and are not fused" for name in experts]
    if not replacements and not any(isinstance(module, SparseMlp) for module in model.modules()):
        sparse = next(iter(sparse_layers(model)), None)
        if sparse is None:
            raise BlastError(
                "no MLP of this model can be fused; make its MLPs block-sparse first, "
                "with blast.to_sparse(model, masks)."
            )
        reasons.append(f"'{sparse}' is in no MLP whose gate, up and down projections are linear layers of their own")
        raise BlastError(f"no MLP of this model can be fused ({reasons[0]}); use the model without blast.fuse.")
    for fused in replacements.values():
        if weights == "fp8":
            fused.quantize()
        else:
            fused.dequantize()
    replace_modules(model, replacements)
    return whole


def unfuse(model: nn.Module) -> nn.Module:
    """Undoes `fuse`. Weights that were in fp8 stay rounded.

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
    fused = [module for module in model.modules() if isinstance(module, SparseMlp)]
    for mlp in fused:
        mlp.dequantize()
    replace_modules(model, {id(mlp): mlp.original for mlp in fused})
    return whole


def fuse_for_training(model: nn.Module) -> nn.Module:
    """Replaces each block-sparse MLP that the training operator supports by a `TrainingMlp`.

    Args:
        model: A sparse model; changed in place. `unfuse` undoes it.

    Returns:
        The same model.
    """
    whole, model = model, unwrapped(model)
    replacements: dict[int, TrainingMlp] = {}
    verified: dict[tuple[object, ...], str | None] = {}
    for mlp in _sparse_mlps(model):
        module = model.get_submodule(mlp.name)
        if isinstance(module, SparseMlp) or module is model or _reason_against(module, mlp) is not None:
            continue
        made = TrainingMlp(module, _roles(mlp), cast(str, _activation(module)))
        if can_train(made.layers) and _reason_by_trial(module, made, verified) is None:
            replacements[id(module)] = made
    replace_modules(model, replacements)
    return whole


def quantization_errors(model: nn.Module) -> dict[str, float]:
    """Relative error of the output of each fused MLP with fp8 weights, by name.

    `‖out − full‖ / ‖full‖` on 64 normally distributed tokens. `SparseMlp.quantization_error(x)` takes other input.

    Args:
        model: A fused model. MLPs without fp8 weights have an error of 0.

    Example:
        >>> model = blast.fuse(blast.to_sparse(model.bfloat16(), masks), weights="fp8")
        >>> blast.quantization_errors(model)
        {'transformer.h.0.mlp': 0.0..., 'transformer.h.1.mlp': 0.0...}
    """
    fused = {name: module for name, module in unwrapped(model).named_modules() if isinstance(module, SparseMlp)}
    return {name: 0.0 if isinstance(mlp, TrainingMlp) else mlp.quantization_error() for name, mlp in fused.items()}


def _sparse_mlps(model: nn.Module) -> Iterator[Mlp]:
    """MLPs with a block-sparse matrix."""
    for mlp in find_mlps(model):
        if any(isinstance(target.module, BlockLinear) for target in mlp.targets):
            yield mlp


def _roles(mlp: Mlp) -> Roles:
    up, down, *gate = (target.name.rpartition(".")[2] for target in (mlp.up, mlp.down, mlp.gate) if target is not None)
    return Roles(up, down, gate[0] if gate else None)


def _reason_against(module: nn.Module, mlp: Mlp) -> str | None:
    """Why an MLP cannot be fused; None if it can."""
    matrices: dict[str, BlockLinear] = {}
    for target in mlp.targets:
        path, _, leaf = target.name.rpartition(".")
        if path != mlp.name:
            return "its matrices are not children of one module"
        layer = module._modules[leaf]
        if not isinstance(layer, BlockLinear):
            return "not all of its matrices are block-sparse"
        matrices[leaf] = layer
    against = _reason_in_module(module)
    if against is not None:
        return against
    for child in module.children():
        if any(getattr(child, hooks) for hooks in HOOKS[:-1]):
            return "a hook on one of its layers would no longer be called"
        if "forward" in child.__dict__:
            return "the forward of one of its layers was replaced"
    others = [child for name, child in module._modules.items() if name not in matrices]
    if len([child for child in others if not isinstance(child, nn.Dropout)]) != 1 or _activation(module) is None:
        return "it has other children than matrices, dropout and one activation that is silu or gelu"
    parts = [part for layer in matrices.values() for part in (layer.values, layer.bias) if part is not None]
    if len({part.dtype for part in parts}) > 1:
        return "its weights and biases have several dtypes"
    if mlp.gate is not None and any(matrices[name].bias is not None for name in list(matrices)[:2]):
        return "its gate has a bias"
    blocks = {matrices[name].block for name in list(matrices)[:-1]}
    return None if len(blocks) == 1 else "gate and up have different blocks"


def _reason_in_module(module: nn.Module) -> str | None:
    """Why a module cannot be replaced by one that computes with its children."""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    arguments = inspect.signature(module.forward).parameters.items()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, each in arguments if each.default is each.empty and each.kind not in several]
    if len(needed) > 1:
        return f"its forward takes {len(needed)} arguments ({', '.join(needed)})"
    own = [name for name, part in (*module._parameters.items(), *module._buffers.items()) if part is not None]
    if own:
        return f"it has a parameter or buffer '{own[0]}' of its own"
    if any(getattr(module, hooks) for hooks in STATE_HOOKS):
        return "a hook changes its state dict"
    return None


def _activation(module: nn.Module) -> str | None:
    """Name of the activation among the children of an MLP, recognised by its values; None if unknown."""
    found = [child for child in module.children() if not isinstance(child, BlockLinear | nn.Dropout)]
    if len(found) != 1 or any(True for _ in found[0].parameters()):
        return None
    # Large values too: some activations clip them.
    large = torch.logspace(1, 3, 21)
    x = torch.cat([-large, torch.linspace(-6, 6, 601), large])
    with torch.no_grad():
        try:
            y = found[0](x)
        except (TypeError, RuntimeError):
            return None
        fits = [name for name, function in ACTIVATIONS.items() if torch.allclose(y, function(x), rtol=1e-6, atol=2e-6)]
    return fits[0] if fits else None


def _disagreement(fused: SparseMlp) -> str | None:
    """How the fused MLP and the original differ on random input, without dropout; None if they agree."""
    values = fused.layers[0].values
    if values.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, fused.layers[0].in_features, generator=generator).to(values.device, values.dtype)
    finite, same = True, False
    with in_eval_mode(fused), suppress(AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        expected = fused.original.forward(x)
        finite = bool(expected.isfinite().all())
        same = agree(fused.forward(x), expected, values.dtype)
    fused.original.training = fused.training
    if not finite:
        return NOT_FINITE
    return None if same else f"{type(fused.original).__name__} computes something else than its children suggest"


def _reason_by_trial(module: nn.Module, fused: SparseMlp, verified: dict[tuple[object, ...], str | None]) -> str | None:
    """Why a trial run forbids to fuse an MLP; None if it does not. MLPs of one kind are tried once."""
    kind = _kind(module, fused)
    if kind in verified:
        return verified[kind]
    reason = _disagreement(fused)
    # Weights that are not finite say nothing about other MLPs of this kind.
    if reason != NOT_FINITE:
        verified[kind] = reason
    return reason


def _kind(module: nn.Module, fused: SparseMlp) -> tuple[object, ...]:
    """What the computation of an MLP depends on besides its matrices. MLPs of one kind are checked once."""
    plain = (bool, int, float, str, type(None))
    options = {
        name: value for name, value in module.__dict__.items() if isinstance(value, plain) and name != "training"
    }
    children = [(name, type(child)) for name, child in module._modules.items()]
    return (type(module), fused.activation_name, fused.gate_kind, *children, *sorted(options.items()))
