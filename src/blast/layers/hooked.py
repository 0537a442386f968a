"""Hooks of sparse layers: the dictionaries that hold them, and how compiled code calls a layer that has some."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# The dictionaries of hooks are passed on, not copied, so that existing handles still remove their hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


class HookedOutsideGraph(nn.Module):
    """A layer that breaks a compiled graph unless its masks are fixed; its hooks run outside the graph with it.

    Otherwise the graph would break between the layer and its hooks. torch 2.11 cannot go on there if the layer is
    called by code that is compiled (`nested_graph_breaks`): `_global_forward_hooks` is not defined.
    """

    def _masks_are_fixed(self) -> bool:
        """Whether compiled code may hold the index."""
        raise NotImplementedError

    def _call_impl(self, *inputs: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling() and not self._masks_are_fixed() and has_forward_hooks(self):
            return _call_outside_graph(self, *inputs, **named)
        return super()._call_impl(*inputs, **named)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.compiler.disable
def _call_outside_graph(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    return nn.Module._call_impl(module, *inputs, **named)
