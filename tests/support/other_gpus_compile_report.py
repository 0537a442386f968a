"""Compiles the kernels for GPUs other than Hopper, without one, with the configs of the rules; prints a JSON list.

Run in a process of its own, as `inference_compile_report`, with `few` or `all` as argument.
"""

from __future__ import annotations

import json
import sys

import torch
from blast_kernels.common.gpu_limits import KNOWN
from blast_kernels.linear.triton_kernels import _block_matmul, pipeline_depth
from blast_kernels.mlp_inference import tuned_configs
from inference_compile_report import compile_config, compile_one

FEW = ((16, "none", 128), (2048, "untied", 128))
MORE = (
    *((tokens, gate, 128) for tokens in (16, 64, 256, 2048) for gate in ("none", "untied", "tied")),
    *((tokens, gate, block) for tokens in (16, 2048) for gate in ("none", "tied") for block in (16, 32, 64)),
)
ROWS, ROW_BLOCKS = 64, 8.0


def main() -> None:
    """Compiles the cases on every known GPU but the Hopper."""
    every = sys.argv[1] == "all"
    reports = []
    for name, limits in KNOWN.items():
        if limits.is_hopper:
            continue
        capability = 10 * limits.capability[0] + limits.capability[1]
        tuned_configs.gpu_limits = lambda device, limits=limits: limits
        for tokens, gate, block in MORE if every else FEW:
            place = (tokens, ROWS, ROW_BLOCKS, block, block, gate, torch.bfloat16, torch.device("cuda"))
            config = tuned_configs.config_without_table(*place)
            found = compile_config(config, block, block, gate, capability)
            reports.append({"gpu": name, "gate": gate, "tokens": tokens, "block": block, "config": config, **found})
        if every or limits.shared_memory < 128 * 1024:
            product = {"HAS_BIAS": True, "HAS_ORDER": True, "OUT_SIDE": 128, "IN_SIDE": 128, "OUT_STRIDE": 1,
                       "IN_STRIDE": 128, "PRECISION": "tf32", "TILE": 128}  # fmt: skip
            stages = pipeline_depth((128, 128), 128, 2, limits)
            found = compile_one(_block_matmul, product, 8, capability, None, {}, stages=stages)
            reports.append({"gpu": name, "gate": "none", "kernel": "block_matmul", "config": None, **found})
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
