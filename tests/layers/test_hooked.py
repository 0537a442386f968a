"""Where the hooks of a sparse layer break a compiled graph."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo

from blast.layers.hooked import HookedOutsideGraph


class Layer(HookedOutsideGraph):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed

    def _masks_are_fixed(self) -> bool:
        return self.fixed

    def forward(self, x):
        return x + 1


@pytest.mark.parametrize(("fixed", "hooked", "graphs"), [(True, True, 1), (False, False, 1), (False, True, 2)])
def test_only_hooks_of_masks_that_change_break_a_graph(fixed, hooked, graphs):
    torch._dynamo.reset()
    layer, compiled = Layer(fixed), []
    if hooked:
        layer.register_forward_hook(lambda _module, _inputs, output: 2 * output)

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    found = torch.compile(lambda x: layer(x * 3) - 1, backend=backend)(torch.ones(2))
    assert found.tolist() == [7.0 if hooked else 3.0] * 2
    assert len(compiled) == graphs
