"""Names and numbers that several operators share."""

from __future__ import annotations

# How gate and up projections are combined. `none`: there is no gate, the hidden activations are `act(x · Uᵀ + bias)`.
# `untied` and `tied`: `act(x · Gᵀ) · (x · Uᵀ)`, where gate and up have separate masks (`untied`) or share one (`tied`).
# These values stand in records, tuned tables and operator calls, so they stay as they are.
GATES = ("none", "untied", "tied")
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")
BLOCK_SIDES = (16, 32, 64, 128)
# A row of a row list (`mlp_inference.row_lists`): how many numbers precede its columns, and the bits of a column or a
# count, of which two share an entry.
HEADER, HALF = 4, 16
# Multiprocessors of an H100 or H200. A kernel config aims at two programs for each.
MULTIPROCESSORS = 132
