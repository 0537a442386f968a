"""A higher learning rate for the pruned matrices: `SparsifyConfig.lr_density_power`.

A pruned matrix has fewer weights that move its output, so its best learning rate is higher. SMET (arXiv 2606.00888)
scales the rate of the whole model by the density; here only the pruned matrices are scaled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DensityScaledRates:
    """Multiplies the learning rate of some parameter groups by `density ** -power` in each optimizer step.

    The factor is applied before `optimizer.step()` and taken back after it. So schedulers and loops that set
    `group["lr"]` work as before.

    Args:
        power: The power of the density; 0 changes nothing.

    Attributes:
        groups: The parameter groups of the pruned matrices.
    """

    def __init__(self, power: float) -> None:
        self.groups: list[dict[str, Any]] = []
        self._power, self._factor = power, 1.0
        # CUDA graphs read the factor from this tensor.
        self._tensor: Tensor | None = None
        self._rates: list[Any] = []

    @torch.no_grad()
    def set_density(self, density: float) -> None:
        """Sets the share of live blocks, above 0; call it after each mask update."""
        self._factor = density**-self._power
        if self._tensor is not None:
            self._tensor.fill_(self._factor)

    def scale(self) -> None:
        """Multiplies the rates; call it before the optimizer step."""
        if self._rates:  # a wrapper and its optimizer both call it
            return
        self._rates = [group["lr"] for group in self.groups]
        for group, rate in zip(self.groups, self._rates, strict=True):
            if isinstance(rate, Tensor):
                if self._tensor is None:
                    self._tensor = torch.full_like(rate, self._factor)
                group["lr"] = rate * self._tensor
            else:
                group["lr"] = rate * self._factor

    def restore(self) -> None:
        """Takes the factor back; call it after the optimizer step."""
        for group, rate in zip(self.groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []
