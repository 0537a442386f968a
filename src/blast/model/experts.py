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
from blast.layers.sparse_experts import ExpertsForm, multiply_dense, run_experts
from blast.model.target import ExpertSlice, Target

UP_NAMES = ("gate_up_proj", "up_proj")
DOWN_NAME = "down_proj"
# Largest ‖expected − found‖ / ‖expected‖ by dtype; the two sum in a different order.
SAME = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
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
    return [Experts(name, module, form) for name, module, form in _candidates(model) if isinstance(form, ExpertsForm)]


def unsupported_experts(model: nn.Module) -> dict[str, str]:
    """By name of its module, why experts in three-dimensional parameters cannot be made block-sparse."""
    return {name: form for name, _, form in _candidates(model) if isinstance(form, str)}


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, ExpertsForm | str]]:
    """The modules of experts with their form, or with the reason against them."""
    verified: dict[object, bool] = {}
    for name, module in model.named_modules():
        form = _form(module)
        if isinstance(form, ExpertsForm):
            kind = (type(module), form)
            if kind not in verified:
                verified[kind] = _computes(module, form)
            if not verified[kind]:
                form = f"{type(module).__name__} computes something else than its parameters suggest"
        if form is not None:
            yield name, module, form


def _form(module: nn.Module) -> ExpertsForm | str | None:
    """The form of a module of experts by its structure, a reason against it, or None if it is no such module."""
    parameters = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    up = next((name for name in UP_NAMES if name in parameters), None)
    if up is None or DOWN_NAME not in parameters or {parameters[up].dim(), parameters[DOWN_NAME].dim()} != {3}:
        return None
    known = {up, DOWN_NAME, f"{up}_bias", f"{DOWN_NAME}_bias"}
    others = sorted(parameters.keys() - known)
    if others:
        return f"its parameter '{others[0]}' is unknown"
    if not all(parameter.is_floating_point() for parameter in parameters.values()):
        return "its weights are quantized"
    if any(is_sharded(parameter) for parameter in parameters.values()):
        return "its weights are sharded over processes (fully_shard)"
    arguments = len(inspect.signature(type(module).forward).parameters) - 1
    if arguments not in (1, 3):
        return f"its forward pass takes {arguments} arguments"
    transposed = _transposed(module, up, parameters[up].shape, parameters[DOWN_NAME].shape)
    if transposed is None:
        return f"the shapes of its parameters {up} and {DOWN_NAME} do not fit each other"
    return ExpertsForm(up, DOWN_NAME, transposed, routed=arguments == 3)


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


def _computes(module: nn.Module, form: ExpertsForm) -> bool:
    """Whether a module computes what its form says, on random tokens. True on the meta device."""
    down = getattr(module, form.down)
    if down.is_meta:
        return True
    experts, width = len(down), down.shape[2 if form.transposed else 1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS if form.routed else experts, width, generator=generator).to(down)
    routing = []
    if form.routed:
        each = min(2, experts)
        chosen = torch.arange(TOKENS * each).view(TOKENS, each) % experts
        routing = [chosen.to(down.device), torch.rand(TOKENS, each, generator=generator).to(down)]
    with torch.no_grad():
        try:
            expected = module.forward(x, *routing).double()
            found = run_experts(module, form, partial(multiply_dense, module, form), x, *routing).double()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
    if expected.shape != found.shape:
        return False
    scale = expected.norm()
    # Weights that are zero or not finite, as before they are loaded, say nothing.
    if not torch.isfinite(scale) or scale == 0:
        return True
    return bool((found - expected).norm() <= SAME.get(down.dtype, 1e-4) * scale)
