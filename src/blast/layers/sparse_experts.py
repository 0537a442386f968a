"""The experts of a mixture with block-sparse matrices: each expert multiplies by its own live blocks.

transformers stores the matrices of all experts in two three-dimensional parameters. Here each of these parameters
becomes a list of layers, one `BlockLinear` for each expert.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.layers.hooked import HOOKS

# Multiplies tokens by a matrix of an expert: (name of the parameter, number of the expert, x [n, in]) -> [n, out].
Multiply = Callable[[str, int, Tensor], Tensor]


class ExpertsForm(NamedTuple):
    """How a module of experts stores its matrices and receives its tokens.

    Attributes:
        up: Name of the parameter with the up projections (`up_proj`), or with gate and up together (`gate_up_proj`).
        down: Name of the parameter with the down projections.
        transposed: Whether both are stored as `[experts, in, out]`.
        routed: Whether the module receives all tokens, and the numbers and weights of their experts. If not, it
            receives equally many tokens for each expert, sorted by expert (Llama 4).
    """

    up: str
    down: str
    transposed: bool
    routed: bool


class SparseExperts(nn.Module):
    """Replaces a module of experts of transformers; its block-sparse matrices are `BlockLinear` layers.

    The layer of expert 3 in the parameter `gate_up_proj` has the name `gate_up_proj.3`. Biases, activation and norm are
    those of the dense module, and so is every other attribute (`num_experts`, `config`).

    Args:
        dense: The module of experts.
        form: Its form.
        layers: For each parameter with block-sparse matrices, the layer of each expert. A parameter that is left out
            stays as it is.
    """

    form: ExpertsForm

    def __init__(self, dense: nn.Module, form: ExpertsForm, layers: Mapping[str, Sequence[BlockLinear]]) -> None:
        super().__init__()
        self.form = form
        # nn.Module.__setattr__ would register it as a child of this module.
        object.__setattr__(self, "_template", _without_parameters(dense))
        self._buffers, self._non_persistent_buffers_set = dense._buffers, dense._non_persistent_buffers_set
        for name, child in dense._modules.items():
            self._modules[name] = child
        for name, parameter in dense._parameters.items():
            if name in layers:
                self._modules[name] = nn.ModuleList(layers[name]).train(dense.training)
            else:
                self._parameters[name] = parameter
        self.training = dense.training
        for hooks in HOOKS:
            setattr(self, hooks, getattr(dense, hooks))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_template" not in self.__dict__:
                raise
            return getattr(self._template, name)

    @property
    def stacks(self) -> dict[str, nn.ModuleList]:
        """For each parameter with block-sparse matrices, the layers of its experts."""
        children = {name: self._modules.get(name) for name in (self.form.up, self.form.down)}
        return {name: child for name, child in children.items() if isinstance(child, nn.ModuleList)}

    def check_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Checks that a state dict has no dense weights for the block-sparse experts; arguments as for `BlockLinear`.

        Raises:
            BlastError: if it has.
        """
        for name in self.stacks:
            if f"{prefix}{name}" in state:
                raise BlastError(
                    f"the state dict has dense weights for the experts '{prefix}{name}', which are block-sparse; "
                    "load it into the dense model, before blast.to_sparse or after blast.to_dense(model)."
                )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.check_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def dense_module(self) -> nn.Module:
        """The dense module that this one replaced, with the present weights and zeros outside the live blocks."""
        dense = _without_parameters(self._template)
        dense._modules = {name: self._modules[name] for name in self._template._modules}
        dense._buffers = self._buffers
        stacks = self.stacks
        for name in dense._parameters:
            dense._parameters[name] = _stacked(stacks[name]) if name in stacks else self._parameters[name]
        for hooks in HOOKS:
            setattr(dense, hooks, getattr(self, hooks))
        dense.training = self.training
        return dense

    # The number of tokens of each expert differs in each call, and the CPU has to know it.
    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output for each token; arguments as for the module it replaces."""
        signature = inspect.signature(type(self._template).forward)
        given = signature.bind(self, *args, **kwargs).arguments
        return run_experts(self, self.form, self._multiply, *list(given.values())[1:])

    def _multiply(self, name: str, number: int, x: Tensor) -> Tensor:
        layers = self._modules.get(name)
        if layers is None:
            return multiply_dense(self, self.form, name, number, x)
        y: Tensor = layers[number](x)  # type: ignore[index]
        return y


def _stacked(layers: nn.Module) -> nn.Parameter:
    """The parameter `[experts, …]` of the layers of all experts."""
    stored = [layer.weight.detach() for layer in layers.children() if isinstance(layer, BlockLinear)]
    gradient = any(parameter.requires_grad for parameter in layers.parameters())
    return nn.Parameter(torch.stack(stored), requires_grad=gradient)


def run_experts(
    module: nn.Module,
    form: ExpertsForm,
    multiply: Multiply,
    x: Tensor,
    chosen: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """What a module of experts computes, one expert after the other.

    Args:
        module: Its biases, activation and norm are used.
        form: Its form.
        multiply: Multiplies by the matrices.
        x: Tokens `[tokens, in]`.
        chosen: The experts of each token `[tokens, k]`, if `form.routed`. A number that no expert has is left out.
        weights: Their weights `[tokens, k]`.

    Returns:
        `[tokens, in]`: for each token the weighted sum over its experts; without `routed` the output of its expert.
    """
    experts = len(getattr(module, form.down))
    if chosen is None or weights is None:
        shares = x.reshape(experts, -1, x.shape[-1])
        return torch.cat([_run_expert(module, form, multiply, number, share) for number, share in enumerate(shares)])
    out = torch.zeros_like(x)
    order, flat = chosen.flatten().argsort(stable=True), weights.flatten()
    counts = chosen.flatten().bincount(minlength=experts).tolist()
    for number, places in enumerate(order.split(counts)[:experts]):
        if places.numel():
            tokens = places // chosen.shape[-1]
            y = _run_expert(module, form, multiply, number, x[tokens]) * flat[places, None]
            out.index_add_(0, tokens, y.to(out.dtype))
    return out


def multiply_dense(module: nn.Module, form: ExpertsForm, name: str, number: int, x: Tensor) -> Tensor:
    """`Multiply` with the three-dimensional parameter of a dense module."""
    matrix = getattr(module, name)[number]
    return x @ matrix if form.transposed else nn.functional.linear(x, matrix)


def _run_expert(module: Any, form: ExpertsForm, multiply: Multiply, number: int, x: Tensor) -> Tensor:
    """One expert on its tokens `[n, in]`."""
    hidden = _plus_bias(module, form.up, number, multiply(form.up, number, x))
    y = _plus_bias(module, form.down, number, multiply(form.down, number, _activated(module, form, hidden)))
    return module.post_expert_norm(y) if getattr(module, "has_post_expert_norm", False) else y


def _activated(module: Any, form: ExpertsForm, hidden: Tensor) -> Tensor:
    if "gate" not in form.up:
        return module.act_fn(hidden)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(hidden)
    gate, up = hidden.chunk(2, dim=-1)
    return up * module.act_fn(gate)


def _plus_bias(module: nn.Module, name: str, number: int, y: Tensor) -> Tensor:
    bias = module._parameters.get(f"{name}_bias")
    return y if bias is None else y + bias[number]


def _without_parameters(module: nn.Module) -> nn.Module:
    """A shallow copy of a module without its parameters."""
    shell = copy.copy(module)
    shell._parameters = dict.fromkeys(module._parameters)
    shell._modules = dict(module._modules)
    return shell
