"""The optimizers that train the matrices, without the wrappers that training frameworks put around them.

`Optimizers` is the only place that looks inside an optimizer: who holds a parameter, its state, its hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blast.block_sparse.sharding import is_sharded
from blast.errors import BlastError
from blast.model.target import Target
from blast.sparsity.mask_groups import MaskGroup, parameter_of

# Attributes in which a wrapper keeps the optimizer that it wraps: accelerate and Lightning, SAM and Lookahead.
WRAPPED = ("optimizer", "base_optimizer")
# Optimizers that cannot train a model with dead blocks, and why.
REFUSED = {
    "DeepSpeedOptimizerWrapper": "DeepSpeed's optimizer trains copies of the weights",
    "LBFGS": "LBFGS evaluates the model several times in one step, and moves dead blocks in between",
    "Rprop": "Rprop keeps a step size for each weight, so that blocks that grow would start with a step size of zero",
    "ZeroRedundancyOptimizer": "ZeroRedundancyOptimizer keeps the state of a matrix in another process",
}
# Names under which Adam and RMSprop keep the running mean of the squared gradient.
SECOND_MOMENTS = ("exp_avg_sq", "square_avg")
REMEDY = "use AdamW, SGD or another optimizer whose state is floating-point and has the shape of the weight"

Hook = Callable[..., None]


class Handle(Protocol):
    """What a registered hook returns."""

    def remove(self) -> None:
        """Removes the hook."""


class Optimizers:
    """The optimizers of one model.

    Args:
        given: One optimizer or several; each may be wrapped, for instance by `accelerator.prepare`.

    Raises:
        BlastError: if one of them cannot train a model with dead blocks.
    """

    def __init__(self, given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> None:
        several = list(given) if isinstance(given, Sequence) else [given]
        if not several:
            raise BlastError("the list of optimizers is empty; give every optimizer that trains a matrix.")
        # For each optimizer its levels, from the outermost wrapper to the optimizer itself; each optimizer once.
        self._levels = list({id(levels[-1]): levels for levels in map(_levels, several)}.values())
        for levels in self._levels:
            for level in levels:
                _check_kind(level)

    @property
    def names(self) -> list[str]:
        """The class name of each optimizer, without wrappers."""
        return [type(levels[-1]).__name__ for levels in self._levels]

    @property
    def unwrapped(self) -> list[torch.optim.Optimizer]:
        """Each optimizer without wrappers."""
        return [levels[-1] for levels in self._levels]

    @property
    def accumulating(self) -> bool:
        """Whether accelerate is between two micro-batches; its optimizers then skip their steps."""
        states = (getattr(level, "gradient_state", None) for levels in self._levels for level in levels)
        return any(getattr(state, "sync_gradients", True) is False for state in states)

    @property
    def have_gradients(self) -> bool:
        """Whether any parameter that they hold has a gradient."""
        groups = (group for levels in self._levels for group in levels[-1].param_groups)
        return any(parameter.grad is not None for group in groups for parameter in group["params"])

    def check_matrices(self, mask_groups: Sequence[MaskGroup]) -> None:
        """Checks that every matrix is held by exactly one optimizer.

        Raises:
            BlastError: with the name of the first matrix that is not.
        """
        held = [held_by(levels[-1]) for levels in self._levels]
        targets = _one_each(mask_groups)
        holders = [sum(id(parameter_of(target)) in ids for ids in held) for target in targets]
        if not any(holders) and any(parameter_of(target).requires_grad for target in targets):
            raise BlastError(
                "the optimizer holds none of the matrices to prune; create it from this model's parameters(), "
                "after all changes to the model's layers."
            )
        for target, count in zip(targets, holders, strict=True):
            parameter = parameter_of(target)
            if hasattr(parameter, "_in_backward_optimizers"):
                raise BlastError(
                    f"the weight of '{target.name}' is trained by an optimizer that steps inside backward(), so its "
                    "gradient is gone when a mask is chosen; use an optimizer that steps after backward()."
                )
            if count > 1:
                raise BlastError(
                    f"{count} optimizers hold the weight of '{target.name}'; put each matrix into one optimizer only."
                )
            if count == 0:
                missing, why = holders.count(0), " (it is frozen)" if not parameter.requires_grad else ""
                raise BlastError(
                    f"no given optimizer holds the weight of '{target.name}'{why}, nor {missing - 1} other matrices "
                    "to prune; give all optimizers in a list, or leave what is not trained out of `targets`."
                )

    def check_loaded(self, mask_groups: Sequence[MaskGroup]) -> None:
        """Checks, after `load_state_dict`, that dense moments were loaded for dense matrices and blocks for blocks.

        Raises:
            BlastError: with the name of the first matrix whose moments have another number of dimensions.
        """
        for target in _one_each(mask_groups):
            parameter = parameter_of(target)
            for _, state in self.states(parameter):
                shapes = [list(v.shape) for v in state.values() if isinstance(v, Tensor) and v.dim() >= 2]
                if any(len(shape) != parameter.dim() for shape in shapes):
                    raise BlastError(
                        f"the loaded optimizer state of '{target.name}' is {shapes[0]}, but its parameter is "
                        f"{list(parameter.shape)}; load the sparsifier's state before that of the optimizer."
                    )

    def states(self, parameter: nn.Parameter) -> Iterator[tuple[str, dict[str, Any]]]:
        """The states kept for a parameter, each with the class name of its optimizer."""
        for levels in self._levels:
            seen: list[dict[str, Any]] = []
            for level in levels:
                state = level.state.get(parameter)
                # A wrapper forwards the state of what it wraps, or has one of its own.
                if state and not any(state is other for other in seen):
                    seen.append(state)
                    yield type(levels[-1]).__name__, state

    def tensors_like(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """The state tensors of a parameter that have its shape."""
        for _, state in self.states(parameter):
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    yield value

    def second_moment(self, parameter: nn.Parameter) -> Tensor | None:
        """Adam's running mean of the squared gradient of a parameter; None before its first step.

        Raises:
            BlastError: if the optimizer of the parameter has taken a step and keeps no such mean.
        """
        for name, state in self.states(parameter):
            for key in SECOND_MOMENTS:
                value = state.get(key)
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    return value
            raise BlastError(
                f"the keep score 'second_moment' needs the second moments of Adam, which {name} does not keep; "
                "use AdamW, or another keep score."
            )
        return None

    def split_groups(self, chosen: set[int]) -> list[dict[str, Any]]:
        """Moves the chosen parameters to groups of their own, with the options of their old groups.

        Args:
            chosen: The `id` of each parameter.

        Returns:
            The groups that hold the chosen parameters and no others.

        Raises:
            BlastError: if a learning-rate scheduler exists already, which would not know the new groups.
        """
        made = []
        for inner in (levels[-1] for levels in self._levels):
            for group in list(inner.param_groups):
                moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
                if len(moved) == len(group["params"]):
                    made.append(group)
                elif moved:
                    if "initial_lr" in group:
                        raise BlastError(
                            "lr_density_power gives the pruned matrices parameter groups of their own, which an "
                            "existing learning-rate scheduler does not know; create the scheduler after the Sparsifier."
                        )
                    options = {key: value for key, value in group.items() if key != "params"}
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
                    inner.add_param_group({**options, "params": moved})
                    made.append(inner.param_groups[-1])
        return made

    def groups_of(self, chosen: set[int]) -> list[dict[str, Any]]:
        """The parameter groups that hold any of the chosen parameters, given by their `id`."""
        groups = (group for inner in self.unwrapped for group in inner.param_groups)
        return [group for group in groups if any(id(parameter) in chosen for parameter in group["params"])]

    def replace_parameter(self, old: nn.Parameter, new: nn.Parameter, convert: Callable[[Tensor], Tensor]) -> None:
        """Replaces a parameter in its optimizer, and converts its state.

        Args:
            old: The parameter to remove. Optimizers without it are not changed.
            new: The parameter to put in its place.
            convert: Converts a state tensor from the shape of `old` to the shape of `new`. Other state is kept.
        """
        for level in (level for levels in self._levels for level in levels):
            for group in level.param_groups:
                group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
            state = level.state.pop(old, None)
            if state is not None:
                level.state[new] = {
                    key: convert(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                    for key, value in state.items()
                }

    def register_hooks(self, before_step: Hook, after_step: Hook, after_load: Hook) -> list[Handle]:
        """Registers hooks of torch's optimizers: before and after each step, and after `load_state_dict`.

        Raises:
            BlastError: if an optimizer, or a wrapper with a state of its own, calls no such hooks.
        """
        handles: list[Handle] = []
        for levels in self._levels:
            for level, inner in zip(levels, [*levels[1:], None], strict=True):
                if getattr(type(level).step, "hooked", False):
                    handles.append(level.register_step_pre_hook(before_step))
                    handles.append(level.register_step_post_hook(after_step))
                    # A wrapper that does not call the initializer of its class may lack this one.
                    if hasattr(level, "_optimizer_load_state_dict_post_hooks"):
                        handles.append(level.register_load_state_dict_post_hook(after_load))
                # A wrapper that forwards everything (accelerate) needs no hooks.
                elif inner is None or level.state is not inner.state:
                    raise BlastError(
                        f"{type(level).__name__} calls no step hooks of torch.optim.Optimizer, so that dead blocks "
                        "cannot be cleared after its steps; give an optimizer that is derived from it."
                    )
        return handles


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """The `id` of each parameter that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def check_state(optimizers: Optimizers, mask_groups: Sequence[MaskGroup], sparse: bool) -> None:
    """Checks that the state kept for each matrix can be cleared, or cut, block by block.

    Args:
        optimizers: The optimizers.
        mask_groups: All mask groups of the model.
        sparse: Whether live blocks alone are or will be trained; a state by row or column is then refused too.

    Raises:
        BlastError: with the name of the first state value that does not fit.
    """
    for target in _one_each(mask_groups):
        parameter = parameter_of(target)
        for name, state in optimizers.states(parameter):
            for key, value in state.items():
                what = _misfit(value, parameter, sparse)
                if what is not None:
                    mended = f'{REMEDY}, or execution="masked"' if sparse and _by_side(value, parameter) else REMEDY
                    raise BlastError(
                        f"{name} keeps '{key}' ({what}) for the weight {list(parameter.shape)} of '{target.name}', "
                        f"which cannot be cut into blocks; {mended}."
                    )


def _one_each(mask_groups: Sequence[MaskGroup]) -> list[Target]:
    """One target for each parameter: all experts of a mixture are in one."""
    targets = [target for group in mask_groups for target in group.matrices]
    return list({id(parameter_of(target)): target for target in reversed(targets)}.values())[::-1]


def _levels(optimizer: Any) -> list[Any]:
    """An optimizer and what it wraps, from the outside in."""
    levels = [optimizer]
    while True:
        inner = (getattr(levels[-1], name, None) for name in WRAPPED)
        found = next((o for o in inner if hasattr(o, "param_groups") and not any(o is level for level in levels)), None)
        if found is None:
            return levels
        levels.append(found)


def _check_kind(optimizer: Any) -> None:
    name = type(optimizer).__name__
    if isinstance(optimizer, type):
        raise BlastError(f"the optimizer is the class {optimizer.__name__} itself; give an instance of it.")
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
        raise BlastError(f"a {name} is no optimizer; give a torch.optim.Optimizer, or a list of them.")
    if name in REFUSED:
        raise BlastError(f"{REFUSED[name]}; {REMEDY}.")


def _misfit(value: object, parameter: nn.Parameter, sparse: bool) -> str | None:
    """What is wrong with a state value of a parameter; None if it fits."""
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = str(list(value.shape))
    if value.numel() == 1:
        return None
    # A quantised moment is a tensor of integers, or of a class of its own: its zero may have any code.
    if not value.is_floating_point():
        return f"{shape} of {str(value.dtype).removeprefix('torch.')}"
    if type(value) not in (Tensor, nn.Parameter) and not is_sharded(value):
        return type(value).__name__
    if value.shape == parameter.shape or (not sparse and _by_side(value, parameter)):
        return None
    return shape


def _by_side(value: object, parameter: nn.Parameter) -> bool:
    """Whether a value is one number for each row or each column (Adafactor), which stays as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    rows, cols = list(parameter.shape[:-1]), [*parameter.shape[:-2], parameter.shape[-1]]
    return [side for side in value.shape if side != 1] in (
        [side for side in sides if side != 1] for sides in (rows, cols)
    )
