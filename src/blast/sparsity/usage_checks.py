"""Checks for mistakes of a training loop around `sparsifier.step()`; each raises one sentence."""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from blast.errors import BlastError
from blast.sparsity.mask_groups import MaskGroup

# Steps in a row that a mask update may wait for finite gradients. A gradient scaler that starts at 2^24 and halves its
# factor in each step needs fewer.
LONGEST_WAIT = 64
# Optimizer steps without `sparsifier.step()` after which a loop is told.
LONGEST_ALONE = 200


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


class FiniteCheck:
    """Waits for finite gradients where a gradient scaler skips the step, and raises where the optimizer uses them."""

    def __init__(self) -> None:
        self._error: BlastError | None = None
        self._waited = 0

    def postpone(self, error: BlastError, ignored: bool = False) -> None:
        """Call it if a mask update finds a gradient that is not finite.

        Args:
            error: Says which gradient.
            ignored: Whether the optimizer will not see that gradient.

        Raises:
            BlastError: if the optimizer would have seen such gradients in too many steps in a row.
        """
        self._waited += 1
        if not ignored:
            self._error = error
            if self._waited > LONGEST_WAIT:
                raise error
        elif self._waited == LONGEST_WAIT:
            warnings.warn(
                f"the mask update has waited for {LONGEST_WAIT} steps, because the gradients of dead blocks overflow; "
                "lower the scale of the gradient scaler, or train in bfloat16.",
                stacklevel=5,
            )

    def new_step(self) -> None:
        """Call it at the begin of `sparsifier.step()`."""
        self._error = None

    def updated(self) -> None:
        """Call it after a mask update."""
        self._waited = 0

    def before_optimizer(self, scaled: bool = False) -> None:
        """Call it before each optimizer step; a gradient scaler does not call an optimizer if gradients overflow.

        Args:
            scaled: Whether a gradient scaler told the optimizer (a fused one) to skip such a step by itself.

        Raises:
            BlastError: if a gradient of this step is not finite.
        """
        if self._error is not None and not scaled:
            raise self._error


class AccumulationCheck:
    """Detects a mask update between the micro-batches of one optimizer step, and a loop that never asks for one."""

    def __init__(self) -> None:
        # Optimizer steps since the last `sparsifier.step()`.
        self._alone = 0
        # A gradient of the last `sparsifier.step()`, until the optimizer has made its step.
        self._gradient: weakref.ref[Tensor] | None = None
        # A gradient that the optimizer has used, and its version then.
        self._used: tuple[weakref.ref[Tensor], int] | None = None

    def after_optimizer(self, mask_groups: Sequence[MaskGroup] = ()) -> None:
        """Call it after each optimizer step; without mask groups, the gradients it has used are unknown."""
        self._gradient = None
        # A replayed step has no hooks, and its loop counts it.
        self._alone = self._alone + 1 if mask_groups else 0
        if self._alone == LONGEST_ALONE:
            warnings.warn(
                f"the optimizer has made {LONGEST_ALONE} steps without sparsifier.step(), so nothing was pruned; call "
                "it in each step, after backward() and before optimizer.step().",
                stacklevel=5,
            )
        gradient = _first_gradient(mask_groups)
        self._used = None if gradient is None else (weakref.ref(gradient), gradient._version)

    def after_step(self, mask_groups: Sequence[MaskGroup]) -> None:
        """Call it at the end of `sparsifier.step()`."""
        gradient = _first_gradient(mask_groups)
        self._alone = 0
        self._gradient = None if gradient is None else weakref.ref(gradient)

    def before_update(self, mask_groups: Sequence[MaskGroup], step: int) -> None:
        """Checks that the gradients are those of all micro-batches of a new step.

        Raises:
            BlastError: if they are those of the last `sparsifier.step()`, still accumulating, or if the optimizer has
                used them already.
        """
        gradients = [p.grad for group in mask_groups for p in group.parameters if p.grad is not None]
        used = None if self._used is None else self._used[0]()
        unchanged = self._used is not None and used is not None and used._version == self._used[1]
        if unchanged and any(gradient is used for gradient in gradients):
            raise BlastError(
                f"a mask update is due at step {step}, but optimizer.step() has already used these gradients; "
                "call sparsifier.step() after backward() and before optimizer.step()."
            )
        last = None if self._gradient is None else self._gradient()
        if last is not None and any(gradient is last for gradient in gradients):
            raise BlastError(
                f"a mask update is due at step {step}, but neither optimizer.step() nor zero_grad() was called since "
                "the last sparsifier.step(); with gradient accumulation call it once, after the last backward()."
            )


def _first_gradient(mask_groups: Sequence[MaskGroup]) -> Tensor | None:
    return next((p.grad for group in mask_groups for p in group.parameters if p.grad is not None), None)
