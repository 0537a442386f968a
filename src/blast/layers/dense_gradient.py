"""The dense gradient of a block-sparse matrix. Mask updates grow blocks by it; other steps never compute it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DenseGradient:
    """Accumulates the dense gradient `gradᵀ · x` of one parameter over the backward passes of a step.

    It is kept until the mask of the step is chosen, because grown blocks start with their gradient of that step. Its
    memory is that of the gradient in masked-dense training, and it exists at mask updates only.

    Attributes:
        total: The sum so far `[out, in]`; None before the first backward pass.

    Args:
        values: The parameter `[nnz, b_out, b_in]` of one matrix, or of several with a shared parameter.
    """

    def __init__(self, values: nn.Parameter) -> None:
        self.total: Tensor | None = None
        self._values = values
        # A hook on the parameter's own gradient: a zero_grad() between two passes then discards this sum as well.
        self._accumulated = False
        self._handle = values.register_post_accumulate_grad_hook(self._after_pass)

    @torch.compiler.disable
    def record(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns `y`; its backward pass adds to the sum.

        Args:
            x: Input of the product `[..., in]`, in the dtype of the product.
            y: Output of the product `[..., out]`.
        """
        if not (torch.is_grad_enabled() and y.requires_grad and self._values.requires_grad):
            return y
        return _Record.apply(y, x.detach(), self)

    def add_pass(self, x: Tensor, grad: Tensor) -> None:
        """Adds one backward pass, from the input `[..., in]` and the gradient of the output `[..., out]`."""
        self.add(grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1]))

    def add(self, product: Tensor) -> None:
        """Adds the dense gradient `[out, in]` of one backward pass."""
        product = product.to(self._values.dtype)
        stale = self._accumulated and self._values.grad is None
        if self.total is None or stale:
            self.total, self._accumulated = product, False
        else:
            self.total += product

    def close(self) -> None:
        """Stops accumulating and frees the memory."""
        self._handle.remove()
        self.total = None

    def _after_pass(self, _: Tensor) -> None:
        self._accumulated = True


class _Record(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, dense_gradient: DenseGradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dense_gradient = dense_gradient
        # No view for autograd, because the caller may change the output in place.
        return torch.ops.aten._unsafe_view.default(y, y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.dense_gradient.add_pass(ctx.saved_tensors[0], grad)
        return grad, None, None
