"""`torch.compile` for the repeated blocks of a model; one compilation serves all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional as F


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: its longest list of modules of one type; empty without such a list."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len(set(map(type, module))) == 1
    ]
    return max(lists, key=len, default=[])


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block of a model with `torch.compile`, in place; a model without repeated blocks as a whole.

    Names, parameters and `state_dict` do not change. Blocks share the compiled code, so that 48 blocks compile as fast
    as 12. The rest (embeddings, last norm, head) runs eagerly.

    This also sets Dynamo's `nested_graph_breaks`. A block is then compiled up to the graph break within its sparse MLP,
    and the cast of the MLP's input is fused with the norm before it.
    """
    torch._dynamo.config.nested_graph_breaks = True
    for block in repeated_blocks(model) or [model]:
        block.compile()


def release_blocks(model: nn.Module) -> None:
    """Undoes `compile_blocks`."""
    for block in repeated_blocks(model) or [model]:
        block._compiled_call_impl = None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32, nats.

    Args:
        logits: `[..., classes]`.
        targets: `[...]`, int64.
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def cross_entropy_of(compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """`cross_entropy`, or its compiled form, which never stores the float32 copy of the logits."""
    return torch.compile(cross_entropy) if compiled else cross_entropy
