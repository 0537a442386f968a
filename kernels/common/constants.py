"""Values that several operators share."""

from __future__ import annotations

GATES = ("none", "untied", "tied")
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")
BLOCK_SIDES = (16, 32, 64, 128)
# Multiprocessors of an H100 or H200; a plan wants two programs for each.
MULTIPROCESSORS = 132
