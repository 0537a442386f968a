"""A higher learning rate for the pruned matrices: `lr_density_power`.

A pruned matrix has fewer weights that move its output, so its best learning rate is higher. SMET (arXiv 2606.00888)
scales the rate of the whole model by the density; here only the pruned matrices are scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from blast.errors import BlastError


class DensityScaledRates:
    """Multiplies the learning rate of the pruned matrices by `density ** -power` in each step of an optimizer.

    The pruned matrices get parameter groups of their own, at the end of `param_groups`. The factor is applied before
    `optimizer.step()` and taken back after it. So schedulers and loops that set `group["lr"]` work as before.

    Args:
        optimizer: The optimizer; its groups are split in place.
        pruned: The parameters of the pruned matrices. Those that replace them later have to take their place in the
            group.
        power: The power of the density; 0 changes nothing.

    Raises:
        BlastError: if a learning-rate scheduler exists already, because it would not know the new groups, or if the
            optimizer calls no hooks.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, pruned: Iterable[nn.Parameter], power: float) -> None:
        self._power, self._factor = power, 1.0
        # CUDA graphs read the factor from this tensor.
        self._tensor: Tensor | None = None
        self._rates: list[Any] = []
        self._groups: list[dict[str, Any]] = []
        if power == 0:
            return
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise BlastError(
                f"lr_density_power needs hooks of the optimizer, which {type(optimizer).__name__} has not; "
                "set it to 0, or take an optimizer of torch."
            )
        if any("initial_lr" in group for group in optimizer.param_groups):
            raise BlastError(
                "lr_density_power gives the pruned matrices parameter groups of their own, which an existing "
                "learning-rate scheduler does not know; create the scheduler after the Sparsifier."
            )
        self._groups = _split_groups(optimizer, {id(parameter) for parameter in pruned})
        optimizer.register_step_pre_hook(lambda *_: self._scale())
        optimizer.register_step_post_hook(lambda *_: self._restore())

    @torch.no_grad()
    def set_density(self, density: float) -> None:
        """Sets the share of live blocks; call it after each mask update."""
        self._factor = density**-self._power
        if self._tensor is not None:
            self._tensor.fill_(self._factor)

    def _scale(self) -> None:
        self._rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            if isinstance(rate, Tensor):
                if self._tensor is None:
                    self._tensor = torch.full_like(rate, self._factor)
                group["lr"] = rate * self._tensor
            else:
                group["lr"] = rate * self._factor

    def _restore(self) -> None:
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate


def _split_groups(optimizer: torch.optim.Optimizer, chosen: set[int]) -> list[dict[str, Any]]:
    """Moves the chosen parameters to groups of their own with the options of their old groups."""
    made = []
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if not moved:
            continue
        options = {key: value for key, value in group.items() if key != "params"}
        if len(moved) == len(group["params"]):
            made.append(group)
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        optimizer.add_param_group({**options, "params": moved})
        made.append(optimizer.param_groups[-1])
    return made
