"""Compiles the kernel of a whole MLP in one launch for Hopper, without a GPU; prints a JSON list of what came out."""

from __future__ import annotations

import json

from blast_kernels.mlp_inference.single_launch import single
from inference_compile_report import compile_one


def main() -> None:
    """Compiles the kernel for blocks of 128 with the slices and stages of 8B."""
    reports = []
    pointers = ("x", "values", "up_values", "down_values", "bias", "down_bias", "hidden", "y")
    types = dict.fromkeys(pointers, "*bf16") | dict.fromkeys(("gate_up_list", "down_list", "counters"), "*i32")
    for gate, slice_, stages in (("none", 64, 4), ("untied", 64, 4), ("tied", 32, 4)):
        constants = {
            "B_OUT": 128, "B_IN": 128, "DOWN_OUT": 128, "DOWN_IN": 128, "SLICE": slice_, "DOWN_SLICE": 64, "TILE": 16,
            "GATE": gate, "ACTIVATION": "silu", "HAS_BIAS": gate == "none", "HAS_DOWN_BIAS": gate == "none",
            "HAS_PLACES": gate != "none", "STAGES": stages, "DOWN_STAGES": 4, "PRECISION": "tf32", "OPAQUE": True,
            "FIRST": True, "SECOND": True,
        }  # fmt: skip
        reports.append({"gate": gate, **compile_one(single, constants, 4, 90, None, types)})
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
