"""Compiles the kernels as planned for Ampere and Hopper, without a GPU; prints a JSON list of what came out.

Run in a process of its own: the tests beside it have Triton interpret.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from blast_kernels.linear.triton_kernels import _block_matmul, _value_grad
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.launch import pairs
from blast_kernels.mlp_inference.persistent import persistent
from blast_kernels.mlp_inference.stream import stream
from blast_kernels.mlp_inference.tiles import tiles
from persistent_program import persistent_case, source_with, weight_box
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_one(
    kernel, constants: dict, warps: int, capability: int, registers: int | None, tile_types: dict, source_of=ASTSource,
    stages: int | None = None,
) -> dict:  # fmt: skip
    """Compiles one specialisation and reads registers, local memory and wgmma off it."""
    source = source_with(kernel, constants, tile_types, source_of)
    options = {"num_warps": warps} | ({} if registers is None else {"maxnreg": registers})
    options |= {} if stages is None else {"num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    spills, in_loops = count_spills(code)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": spills,
        "spills_in_loops": in_loops,
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
    }


def count_spills(code: str) -> tuple[int, int]:
    """Accesses to local memory in a disassembly: all of them, and those between a backward branch and its target."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", code)]
    spills = [at for at, text in lines if re.search(r"\b(?:LDL|STL)\b", text)]
    branches = [(int(to[1], 16), at) for at, text in lines if (to := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text))]
    # Behind the last EXIT lie the tails of barrier waits, moved out of line.
    end_of_code = max((at for at, text in lines if text.startswith("EXIT")), default=0)
    loops = [(to, at) for to, at in branches if to < at < end_of_code]
    return len(spills), sum(any(to <= at <= end for to, end in loops) for at in spills)


def compile_config(
    config: KernelConfig,
    b_out: int,
    b_in: int,
    gate: str,
    capability: int,
    scaled: bool = False,
    places: bool = False,
    up_first: bool = False,
) -> dict:
    """Compiles the kernel of a config."""
    activation = "none" if gate == "none" else "silu"
    constants = {
        "B_OUT": b_out,
        "B_IN": b_in,
        "SLICE": config.slice,
        "TILE": config.tile,
        "GATE": gate,
        "ACTIVATION": activation,
        "HAS_BIAS": gate == "none",
        "HAS_SCALES": scaled,
        "HAS_PLACES": places,
        "SPLIT": config.split,
        "CLEARS": 0,
        "STAGES": config.stages,
        "OPAQUE": True,
        "LEADS": False,
        "WAITS": "never",
    }
    stored = "fp8e4nv" if scaled else "bf16"
    if config.kernel == "stream":
        constants |= {"BLOCKS": max(1, config.k // b_in), "PRECISION": "tf32", "PREFETCH": 2}
        stored_as = {"values": f"*{stored}", "up_values": f"*{stored}"}
        return compile_one(stream, constants, config.warps, capability, config.registers, stored_as)
    constants |= {"K": config.k, "WEIGHTS_FIRST": config.weights_first or scaled, "UP_FIRST": up_first}
    paired = constants["PAIRED"] = gate == "tied" and pairs(config, scaled)
    tile_types = {
        "x_descriptor": f"tensordesc<bf16[{config.tile}, {config.k}]>",
        "w_descriptor": f"tensordesc<{stored}{weight_box(config, paired)}>",
        "up_descriptor": f"tensordesc<{stored}{weight_box(config, paired)}>",
        "y_descriptor": f"tensordesc<bf16[{config.tile}, {config.slice}]>",
    }
    return compile_one(tiles, constants, config.warps, capability, config.registers, tile_types)


def compile_persistent(config: KernelConfig, block: int, gate: str, activation: str) -> dict:
    """Compiles the kernel that is written in Gluon, for Hopper alone."""
    constants, tile_types = persistent_case(config, block, gate, activation, False)
    return compile_one(persistent, constants, config.warps, 90, 168, tile_types, GluonASTSource)


def main() -> None:
    """Compiles every distinct config of the measured shapes."""
    reports = []
    few, some, many = 1, 128, 4096
    cases = [(90, 128, 128, gate, tokens) for gate in ("none", "untied", "tied") for tokens in (few, many)]
    cases += [(90, 128, 128, "untied", some), (90, 32, 128, "none", many), (90, 16, 16, "none", many)]
    cases += [(80, 128, 128, "none", few), (80, 128, 128, "untied", many)]
    for capability, b_out, b_in, gate, tokens in cases:
        config = heuristic_config(tokens, 200, b_out, b_in, gate, has_tma=capability >= 90, has_gluon=False)
        report = compile_config(config, b_out, b_in, gate, capability)
        reports.append({"case": f"sm_{capability} {b_out}x{b_in} {gate}", "config": config, **report})
    # What the memory of a config is reckoned by: wide tiles, deep pipelines, weights on either side.
    for config, gate in (
        (KernelConfig("tiles", 256, 64, 64, 3, 8, False, 4), "tied"),
        (KernelConfig("tiles", 128, 64, 64, 3, 4, False, 16), "untied"),
        (KernelConfig("tiles", 32, 64, 128, 6, 4), "none"),
        (KernelConfig("stream", 16, 128, 128, 6, 4), "none"),
        (KernelConfig("stream", 64, 64, 128, 4, 4), "tied"),
    ):
        report = compile_config(config, 128, 128, gate, 90)
        reports.append({"case": f"sm_90 {gate} memory", "config": config, **report})
    several = [KernelConfig("tiles", 64, 64, 64, 4, 4, split=2), KernelConfig("stream", 16, 64, 128, 4, 4, split=2)]
    for config, gate, scaled in [(p, g, s) for p in several for g in ("none", "untied", "tied") for s in (False, True)]:
        report = compile_config(config, 128, 128, gate, 90, scaled)
        reports.append({"case": f"sm_90 {gate} split {'scaled' * scaled}", "config": config, **report})
    for gate, block, slice_, stages, activation in (
        ("none", 128, 128, 4, "gelu"),
        ("none", 64, 64, 4, "gelu_tanh"),
        ("untied", 128, 128, 3, "silu"),
        ("tied", 128, 64, 4, "silu"),
    ):
        config = KernelConfig("persistent", 256, slice_, 64, stages, 4, False, 4)
        report = compile_persistent(config, block, gate, activation)
        reports.append({"case": f"sm_90 {gate} persistent", "config": config, **report})
    product = {"HAS_BIAS": True, "HAS_ORDER": True, "OUT_SIDE": 128, "IN_SIDE": 128, "OUT_STRIDE": 1, "IN_STRIDE": 128}
    tiling = {"PRECISION": "tf32"}
    for name, kernel, constants in (
        ("block_matmul", _block_matmul, product | tiling | {"TILE": 128}),
        ("value_grad", _value_grad, {"B_OUT": 128, "B_IN": 128, "TILE": 64} | tiling),
    ):
        report = compile_one(kernel, constants, 8, 90, None, {})
        reports.append({"case": f"sm_90 {name}", "config": None, **report})
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
