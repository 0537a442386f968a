"""Importing this module registers every operator as `torch.ops.blast.*`."""

from __future__ import annotations

import blast_kernels.linear.ops
import blast_kernels.mlp_inference.ops
import blast_kernels.mlp_training.ops  # noqa: F401
