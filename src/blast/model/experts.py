"""Finds the experts of a mixture whose matrices are slices of three-dimensional parameters.

A module of experts has a parameter `gate_up_proj` (or `up_proj`) and a parameter `down_proj`, each with one matrix for
each expert, as transformers stores them. Whether the module computes what this structure suggests is checked by values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from blast.block_sparse.sharding import is_sharded
from blast.layers.sparse_experts import ExpertsForm, SparseExperts, multiply_dense, run_experts
from blast.model.agreement import agree, in_eval_mode
from blast.model.eligibility import DTYPES, STATE_HOOKS, STATE_METHODS
from blast.model.target import ExpertSlice, Target

UP_NAMES = ("gate_up_proj", "up_proj")
DOWN_NAME = "down_proj"
# Tokens of the check by values.
TOKENS = 4


class Experts(NamedTuple):
    """The experts of one mixture.

    Attributes:
        name: Name of their module.
        module: The module with the three-dimensional parameters.
        form: How it stores its matrices and receives its tokens.
    """

    name: str
    module: nn.Module
    form: ExpertsForm

    @property
    def targets(self) -> list[Target]:
        """The matrices: the up projection of each expert, then the down projection of each."""
        prefix = f"{self.name}." if self.name else ""
        return [
            Target(
                f"{prefix}{parameter}.{number}",
                self.module,
                role,
                self.name,
                ExpertSlice(parameter, number, self.form.transposed),
            )
            for parameter, role in ((self.form.up, "up"), (self.form.down, "down"))
            for number in range(len(getattr(self.module, parameter)))
        ]


def find_experts(model: nn.Module) -> list[Experts]:
    """The experts of a model that can be made block-sparse, in the order of its modules."""
    return [Experts(name, module, form) for name, module, form in _checked(model) if isinstance(form, ExpertsForm)]


def unsupported_experts(model: nn.Module) -> dict[str, str]:
    """By name of its module, why experts in three-dimensional parameters cannot be made block-sparse."""
    return {name: form for name, _, form in _checked(model) if isinstance(form, str)}


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The three-dimensional parameters with the matrices of experts, each once."""
    modules = [module for module in model.modules() if _names(module) is not None]
    parameters = [module._parameters[name] for module in modules for name in _names(module) or ()]
    return list({id(parameter): parameter for parameter in parameters if parameter is not None}.values())


def sparse_expert_targets(model: nn.Module) -> list[Target]:
    """The matrices of the experts that are block-sparse already."""
    return [
        Target(
            f"{name}.{parameter}.{number}" if name else f"{parameter}.{number}",
            layer,
            "up" if parameter == module.form.up else "down",
            name,
        )
        for name, module in model.named_modules()
        if isinstance(module, SparseExperts)
        for parameter, layers in module.stacks.items()
        for number, layer in layers.named_children()
    ]


def form_of(module: nn.Module) -> ExpertsForm | str | None:
    """The form of a module of experts by its structure, a reason against it, or None if it is no such module."""
    names = _names(module)
    if names is None:
        return None
    up, down = names
    parameters = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    others = sorted(parameters.keys() - {up, down, f"{up}_bias", f"{down}_bias"})
    if others:
        return f"the parameter '{others[0]}' is unknown"
    for name, parameter in parameters.items():
        if is_sharded(parameter):
            return "the weights are sharded over processes (fully_shard)"
        if type(parameter) is not nn.Parameter or parameter.dtype not in DTYPES:
            return f"'{name}' is quantised, or a {type(parameter).__name__}"
    if "forward" in module.__dict__:
        return "the forward was replaced (by an adapter, or to offload it)"
    if any(getattr(type(module), method) is not getattr(nn.Module, method) for method in STATE_METHODS):
        return "the class has a way of its own to save its state"
    if any(getattr(module, hooks) for hooks in STATE_HOOKS):
        return "a hook changes its state dict"
    arguments = len(inspect.signature(type(module).forward).parameters) - 1
    if arguments not in (1, 3):
        return f"the forward takes {arguments} arguments"
    transposed = _transposed(module, up, parameters[up].shape, parameters[down].shape)
    if transposed is None:
        return f"the shapes of '{up}' and '{down}' do not fit each other"
    return ExpertsForm(up, down, transposed, routed=arguments == 3)


def _checked(model: nn.Module) -> Iterator[tuple[str, nn.Module, ExpertsForm | str]]:
    """The modules of experts with their form, or with the reason against them."""
    verified: dict[object, str | None] = {}
    for name, module in model.named_modules():
        form = form_of(module)
        if isinstance(form, ExpertsForm):
            kind = (type(module), form)
            if kind not in verified:
                verified[kind] = _difference(module, form)
            form = verified[kind] or form
        if form is not None:
            yield name, module, form


def _names(module: nn.Module) -> tuple[str, str] | None:
    """Names of the parameters with the up and the down projections of experts, both three-dimensional."""
    parameters = module._parameters
    up = next((name for name in UP_NAMES if parameters.get(name) is not None), None)
    if up is None:
        return None
    stacked = all(
        parameter is not None and parameter.dim() == 3 for parameter in (parameters[up], parameters[DOWN_NAME])
    )
    return (up, DOWN_NAME) if stacked else None


def _transposed(module: nn.Module, up: str, above: torch.Size, below: torch.Size) -> bool | None:
    """Whether the matrices are stored as `[in, out]`, by the shapes of the two parameters; None if neither fits."""
    wide = 2 if "gate" in up else 1
    (experts, *up_sides), (same, *down_sides) = above, below
    if experts != same:
        return None
    fits = {
        False: up_sides == [wide * down_sides[1], down_sides[0]],
        True: up_sides == [down_sides[1], wide * down_sides[0]],
    }
    if all(fits.values()):
        return bool(getattr(module, "is_transposed", False))
    return next((transposed for transposed, fit in fits.items() if fit), None)


def _difference(module: nn.Module, form: ExpertsForm) -> str | None:
    """How a module differs from what its form says, on random tokens; None if it does not, or on the meta device."""
    down = getattr(module, form.down)
    if down.is_meta:
        return None
    experts, width = len(down), down.shape[2 if form.transposed else 1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS if form.routed else experts, width, generator=generator).to(down)
    routing = []
    if form.routed:
        each = min(2, experts)
        chosen = torch.arange(TOKENS * each).view(TOKENS, each) % experts
        routing = [chosen.to(down.device), torch.rand(TOKENS, each, generator=generator).to(down)]
    try:
        with in_eval_mode(module):
            expected = module.forward(x, *routing)
            found = run_experts(module, form, partial(multiply_dense, module, form), x, *routing)
    except Exception as error:
        return f"the forward fails on random tokens ({error})"
    # Weights that are zero or not finite, as before they are loaded, say nothing.
    if not expected.isfinite().all() or not expected.any():
        return None
    same = expected.shape == found.shape and agree(found, expected, down.dtype)
    return None if same else f"{type(module).__name__} computes something else than its parameters suggest"
