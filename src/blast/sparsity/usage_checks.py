"""Checks for mistakes of a training loop around `sparsifier.step()`; each raises one sentence."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.sparsity.mask_groups import MaskGroup


def check_optimizer_has_matrices(optimizer: torch.optim.Optimizer, mask_groups: Sequence[MaskGroup]) -> None:
    """Raises a BlastError if the optimizer has none of the matrices."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for group in mask_groups for parameter in group.parameters):
        raise BlastError(
            "the optimizer holds none of the matrices to prune; create it from this model's parameters(), "
            "after all changes to the model's layers."
        )


class ReplacementCheck:
    """Detects that somebody replaced the module of a matrix.

    Args:
        model: The model.
        mask_groups: Its mask groups. The sparsifier may change their modules together with those of the model.
    """

    def __init__(self, model: nn.Module, mask_groups: Sequence[MaskGroup]) -> None:
        self._model = model
        # Where each module is found. All experts of a mixture are in one module.
        targets = [(group, place, target) for group in mask_groups for place, target in enumerate(group.targets)]
        self._places = {target.module_name: (group, place) for group, place, target in targets}
        self._modules: list[nn.Module] = []
        # Every module on the path to a matrix: its parent's children, its name there, and itself. In most steps it is
        # enough to compare these.
        self._paths: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = []

    def check(self) -> None:
        """Compares the modules of the model with those of the mask groups.

        Raises:
            BlastError: if a module was replaced; the message has its name.
        """
        modules = [group.targets[place].module for group, place in self._places.values()]
        same = len(modules) == len(self._modules) and all(map(operator.is_, modules, self._modules))
        if same and all(children.get(name) is child for children, name, child in self._paths):
            return
        for name, module in zip(self._places, modules, strict=True):
            if self._model.get_submodule(name) is not module:
                raise BlastError(
                    f"'{name}' was replaced after the Sparsifier was created (by blast.to_sparse?); "
                    "finish the training before the conversion, or create a new Sparsifier and optimizer."
                )
        self._paths = [part for name in self._places for part in self._path_to(name)]
        # A wrapper that forwards names (torch.compile) hides the path. Each step then asks the model by name.
        ends = {id(child) for _, _, child in self._paths}
        self._modules = modules if all(id(module) in ends for module in modules) else []

    def _path_to(self, name: str) -> Iterator[tuple[dict[str, nn.Module | None], str, nn.Module | None]]:
        module: nn.Module | None = self._model
        for part in name.split("."):
            if module is None:
                return
            children = module._modules
            module = children.get(part)
            yield children, part, module


class AccumulationCheck:
    """Detects a mask update between the micro-batches of one optimizer step."""

    def __init__(self) -> None:
        self._stepped = True
        self._gradient: weakref.ref[Tensor] | None = None

    def after_optimizer(self) -> None:
        """Call it after each optimizer step."""
        self._stepped = True

    def after_step(self, mask_groups: Sequence[MaskGroup]) -> None:
        """Call it at the end of `sparsifier.step()`."""
        gradient = next((p.grad for group in mask_groups for p in group.parameters if p.grad is not None), None)
        self._stepped, self._gradient = False, None if gradient is None else weakref.ref(gradient)

    def before_update(self, mask_groups: Sequence[MaskGroup], step: int) -> None:
        """Raises a BlastError if the gradients are those of the last `sparsifier.step()`, still accumulating."""
        last = None if self._stepped or self._gradient is None else self._gradient()
        if last is not None and any(p.grad is last for group in mask_groups for p in group.parameters):
            raise BlastError(
                f"a mask update is due at step {step}, but neither optimizer.step() nor zero_grad() was called since "
                "the last sparsifier.step(); with gradient accumulation call it once, after the last backward()."
            )
