"""Whether a call is plain eager inference, so that it may go around its operator, whose dispatch costs the CPU time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def observers() -> tuple[Callable[[], Any], ...] | None:
    """Functions that say who wants to see operators; None if this version of torch lacks one of them.

    They are the modes of torch that count or replace operators, the transforms of `torch.func` such as `vmap`, a
    profiler, and `torch.jit.trace`. Their functions have no public names.
    """
    try:
        return (
            torch._C._len_torch_dispatch_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch.autograd._profiler_enabled,
            torch._C._is_tracing,
        )
    except AttributeError:
        return None


_OBSERVERS = observers()


def is_plain(x: Tensor) -> bool:
    """Whether nobody would notice that no operator is called for `x`.

    So it is without gradients, outside compiled and traced graphs, for an ordinary tensor, and if nobody wants to see
    operators. If torch cannot be asked, the answer is no.
    """
    if _OBSERVERS is None or type(x) is not Tensor or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    modes, transforms, profiler, tracing = _OBSERVERS
    return not (modes() or transforms() is not None or profiler() or tracing())
