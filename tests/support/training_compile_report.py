"""Compiles the training kernels with the configs for Ampere and Hopper, without a GPU. Prints a JSON list of reports.

It runs in a process of its own, because the other tests make Triton interpret its kernels.
"""

from __future__ import annotations

import json

from blast_kernels.mlp_training.gate_up import gate_up_kernel
from blast_kernels.mlp_training.gather_matmul import gather_matmul_kernel
from blast_kernels.mlp_training.heuristics import group_members, sddmm_config, tile_config
from blast_kernels.mlp_training.hidden_grad import hidden_grad_kernel
from blast_kernels.mlp_training.sddmm import sddmm_kernel, sum_parts_kernel
from inference_compile_report import compile_one

GATES = (("untied", "silu"), ("tied", "silu"), ("none", "gelu_tanh"))


def compile_tiles(kernel: str, side: int, gate: str, activation: str, capability: int, width: int = 0) -> dict:
    """Compiles one of the products through row lists for square blocks of bfloat16."""
    hopper = capability >= 90
    config = tile_config(kernel, 8192, side, side, gate, False, hopper, width)
    transposed = kernel in ("input_grad", "hidden_grad")

    def described(rows: int, columns: int) -> str:
        return f"tensordesc<bf16[{rows}, {columns}]>"

    x, y = described(config.tile, config.k), described(config.tile, config.slice)
    w = described(config.k, config.slice) if transposed else described(config.slice, config.k)
    constants = {
        "SLICE": config.slice,
        "K": config.k,
        "TILE": config.tile,
        "STAGES": config.stages,
        "PRECISION": "tf32",
    }
    if kernel == "gate_up":
        constants |= {"B_HIDDEN": side, "B_IN": side, "GATE": gate, "ACTIVATION": activation, "OPAQUE": True}
        constants |= {"HAS_BIAS": gate == "none", "WEIGHTS_FIRST": config.weights_first}
        types = {"x": x, "gate": w, "up": w, "pre": y, "hidden": y}
        function = gate_up_kernel
    elif kernel == "hidden_grad":
        constants |= {"B_OUT": side, "B_HIDDEN": side, "ACTIVATION": activation}
        constants |= {"GATED": gate != "none", "HAS_BIAS": gate == "none"}
        types = {"grad": x, "down": w, "pre": y, "grad_pre": y, "hidden": y}
        function = hidden_grad_kernel
    else:
        constants |= {
            "B_OUT": side,
            "B_IN": side,
            "TRANSPOSED": transposed,
            "TWO_MATRICES": transposed and gate != "none",
        }
        constants |= {"HAS_BIAS": not transposed, "WEIGHTS_FIRST": config.weights_first}
        types = {"x": x, "first": w, "second": w, "y": y}
        function = gather_matmul_kernel
    types = {f"{name}_descriptor": kind for name, kind in types.items()} | {"bias_parts": "*fp32"}
    report = compile_one(function, constants, config.warps, capability, None, types)
    return {"case": f"sm_{capability} {kernel} {side} {gate}", "tensor_cores": hopper, **report}


def compile_sddmm(side: int, own_is_out: bool, parts: bool, capability: int, blocks: int = 0, groups: int = 0) -> dict:
    """Compiles the gradient of the blocks with the config for these numbers of live blocks and groups."""
    hopper = capability >= 90
    members = group_members(side, blocks)[0]
    config = sddmm_config(side, side, members, False, hopper, groups)
    constants = {"B_OWN": side, "B_SHARED": side, "K": config.k, "MEMBERS": members, "OWN_IS_OUT": own_is_out}
    constants |= {"PARTS": parts, "STAGES": config.stages, "PRECISION": "tf32"}
    operand, result = f"tensordesc<bf16[{config.k}, {side}]>", "*fp32" if parts else "*bf16"
    types = {"own_descriptor": operand, "shared_descriptor": operand, "out": result, "second_out": result}
    report = compile_one(sddmm_kernel, constants, config.warps, capability, None, types)
    return {
        "case": f"sm_{capability} sddmm {side} {own_is_out} {parts} {blocks} {groups}",
        "tensor_cores": hopper,
        **report,
    }


def main() -> None:
    """Compiles the kernels for blocks of 64 and 128."""
    reports = []
    for capability, sides in ((90, (128, 64)), (80, (64,))):
        for side in sides:
            for gate, activation in GATES:
                reports.append(compile_tiles("gate_up", side, gate, activation, capability))
            for gate, activation in GATES[1:]:
                reports.append(compile_tiles("hidden_grad", side, gate, activation, capability))
            reports.append(compile_tiles("down", side, "none", "none", capability))
            reports.append(compile_tiles("input_grad", side, "untied", "none", capability))
            reports.append(compile_sddmm(side, True, False, capability))
            reports.append(compile_sddmm(side, False, True, capability))
    reports.append(compile_tiles("input_grad", 128, "untied", "none", 90, width=160))
    reports.append(compile_sddmm(128, True, False, 90, blocks=300))
    reports.append(compile_sddmm(128, True, False, 90, groups=1000))
    types = {"parts_buffer": "*fp32", "second_out": "*bf16"}
    report = compile_one(sum_parts_kernel, {"WIDTH": 1024}, 4, 90, None, types)
    reports.append({"case": "sm_90 sum_parts", "tensor_cores": False, **report})
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
