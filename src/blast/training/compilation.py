"""A model under `torch.compile`, one of its repeated blocks at a time: a compilation serves all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional as F


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules of one kind in a model, its transformer blocks; empty if there is none."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len(set(map(type, module))) == 1
    ]
    return max(lists, key=len, default=[])


def compile_blocks(model: nn.Module) -> None:
    """Puts each block of a model under `torch.compile`, in place; a model without repeated blocks as a whole.

    Names, parameters and `state_dict` stay as they are. Blocks share what is compiled, so that a model of 48 takes no
    longer than one of 12; what lies between them (embeddings, last norm, head) runs as it is.

    From then on Dynamo's `nested_graph_breaks` is set: a block is compiled up to the very place within its sparse MLP
    where that is called outside of the graph. The cast of the MLP's input is then one kernel with the norm before it.
    """
    torch._dynamo.config.nested_graph_breaks = True
    for block in repeated_blocks(model) or [model]:
        block.compile()


def release_blocks(model: nn.Module) -> None:
    """Takes `compile_blocks` back."""
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
    """`cross_entropy`, or the same compiled, which never makes the float32 copy of the logits."""
    return torch.compile(cross_entropy) if compiled else cross_entropy
