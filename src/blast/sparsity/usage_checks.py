"""What a training loop can get wrong around `sparsifier.step()`, told in one sentence each."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from blast.errors import BlastError
from blast.sparsity.mask_groups import Unit


def check_held(optimizer: torch.optim.Optimizer, units: Sequence[Unit]) -> None:
    """Raises if the optimizer holds none of the matrices."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for unit in units for parameter in unit.parameters):
        raise BlastError(
            "the optimizer holds none of the matrices to prune; make it from this model's parameters(), "
            "after any change of the model's layers."
        )


class ModuleCheck:
    """Notices that a matrix was replaced.

    Args:
        model: Holds the units' matrices.
        units: What a sparsifier works on; their modules may become others, if they are those of the model then.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        self._model, self._units = model, units
        self._modules: list[nn.Module] = []
        # Where each module on the way to a matrix hangs: to look at these is all there is to do in most steps.
        self._ways: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = []

    def check(self) -> None:
        """Raises if a matrix is no longer the one that a unit stands for.

        Raises:
            BlastError: with its name.
        """
        targets = [target for unit in self._units for target in unit.targets]
        modules = [target.module for target in targets]
        same = len(modules) == len(self._modules) and all(map(operator.is_, modules, self._modules))
        if same and all(children.get(name) is child for children, name, child in self._ways):
            return
        for target in targets:
            if self._model.get_submodule(target.name) is not target.module:
                raise BlastError(
                    f"'{target.name}' was replaced after the Sparsifier was made (by blast.to_sparse?); "
                    "finish the training before converting, or make a new Sparsifier and optimizer."
                )
        self._ways = [way for target in targets for way in self._way_to(target.name)]
        # Behind a wrapper that passes names on (torch.compile) the way is not known, and each step asks the model.
        ends = {id(child) for _, _, child in self._ways}
        self._modules = modules if all(id(module) in ends for module in modules) else []

    def _way_to(self, name: str) -> Iterator[tuple[dict[str, nn.Module | None], str, nn.Module | None]]:
        module: nn.Module | None = self._model
        for part in name.split("."):
            if module is None:
                return
            children = module._modules
            module = children.get(part)
            yield children, part, module


class AccumulationCheck:
    """Notices a mask update between the micro-batches of one optimizer step."""

    def __init__(self) -> None:
        self._stepped = True
        self._gradient: weakref.ref | None = None

    def after_optimizer(self) -> None:
        """To be called when the optimizer has made its step."""
        self._stepped = True

    def after_step(self, units: Sequence[Unit]) -> None:
        """To be called at the end of `sparsifier.step()`."""
        gradient = next((p.grad for unit in units for p in unit.parameters if p.grad is not None), None)
        self._stepped, self._gradient = False, None if gradient is None else weakref.ref(gradient)

    def before_update(self, units: Sequence[Unit], step: int) -> None:
        """Raises if the gradients are those of the last `sparsifier.step()`, still being summed up."""
        last = None if self._stepped or self._gradient is None else self._gradient()
        if last is not None and any(p.grad is last for unit in units for p in unit.parameters):
            raise BlastError(
                f"a mask update is due at step {step}, but neither optimizer.step() nor zero_grad() was called since "
                "the last sparsifier.step(); with gradient accumulation call it once, after the last backward()."
            )
