"""The dense gradient of a block-sparse matrix, which a mask update grows blocks by; never made at any other step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseGradient:
    """Sums up the dense gradient `gradᵀ · x` of one parameter over the backward passes of a step.

    It is kept until the step's mask is chosen, since the blocks that grow start with their gradient of that step. That
    takes as much memory as the gradient in masked-dense training did, at mask updates alone.

    Args:
        values: The parameter `[nnz, b_out, b_in]`, of one matrix or of several that are tied.
    """

    def __init__(self, values: nn.Parameter) -> None:
        self.total: Tensor | None = None
        self._values = values
        # Told by the parameter's own gradient, so that a zero_grad() in between discards this one as well.
        self._accumulated = False
        self._handle = values.register_post_accumulate_grad_hook(self._after_pass)

    @torch.compiler.disable
    def passed(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` itself, whose gradient will be looked at.

        Args:
            x: Input of the product `[..., in]`, in the dtype that it is made in.
            y: Its output `[..., out]`.
        """
        if not (torch.is_grad_enabled() and y.requires_grad and self._values.requires_grad):
            return y
        return _Pass.apply(y, x.detach(), self)

    def add(self, x: Tensor, grad: Tensor) -> None:
        """Adds the gradient of one pass: input `[..., in]`, gradient of the output `[..., out]`."""
        self.take(grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1]))

    def take(self, product: Tensor) -> None:
        """Adds the gradient of one pass `[out, in]`."""
        product = product.to(self._values.dtype)
        stale = self._accumulated and self._values.grad is None
        if self.total is None or stale:
            self.total, self._accumulated = product, False
        else:
            self.total += product

    def close(self) -> None:
        """Ends the watch and gives the memory back."""
        self._handle.remove()
        self.total = None

    def _after_pass(self, _: Tensor) -> None:
        self._accumulated = True


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, watch: DenseGradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.watch = watch
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.watch.add(ctx.saved_tensors[0], grad)
        return grad, None, None
