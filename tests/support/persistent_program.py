"""Makes the program of the kernel in Gluon for Hopper, as Triton checks it before it compiles; prints facts as JSON.

Run in a process of its own: Triton's interpreter, which the tests beside it use, leaves a Triton that cannot make
programs. Without torch it takes three seconds.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from blast_kernels.mlp_inference.persistent import persistent
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

POINTERS = {"x", "values", "up_values", "bias", "y", "grad", "out"}
FLOATS = {"scales", "up_scales", "partials"}
INDICES = {
    "counters",
    "to_clear",
    "row_list",
    "row_lists",
    "block_groups",
    "offsets",
    "indices",
    "order",
    "rows",
    "columns",
}


class Shape(NamedTuple):
    """What a program takes of a `KernelConfig`, whose module imports torch."""

    slice: int
    k: int
    stages: int


def source_with(kernel, constants: dict, tile_types: dict, source_of=ASTSource) -> ASTSource:
    """One specialisation: constants, the types of its arguments, and widths and addresses that are aligned."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in tile_types:
            signature[name] = tile_types[name]
        else:
            kinds = (POINTERS, "*bf16"), (FLOATS, "*fp32"), (INDICES, "*i32")
            signature[name] = next((kind for names_of, kind in kinds if name in names_of), "i32")
    widths = ("width", "in_features", "out_features", "hidden_features", "down_width")
    aligned = [n for n in names if signature[n].startswith("*") or n in widths]
    return source_of(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def persistent_case(config: Shape, block: int, gate: str, activation: str, up_first: bool) -> tuple[dict, dict]:
    """Constants and descriptors of the kernel; a `KernelConfig` will do too."""
    stored = config.slice if gate == "untied" else min(64, config.slice)
    weights = weight_box(config, gate == "tied")
    boxes = {"x": (128, config.k), "w": weights, "up": weights, "y": (128, stored)}
    tile_types = {
        f"{name}_descriptor": f"tensordesc<bf16{list(box)},"
        f"{gl.NVMMASharedLayout.get_default_for(list(box), gl.bfloat16)!r}>"
        for name, box in boxes.items()
    }
    constants = {
        "B_OUT": block,
        "B_IN": block,
        "SLICE": config.slice,
        "K": config.k,
        "GATE": gate,
        "ACTIVATION": activation,
        "HAS_BIAS": gate == "none",
        "HAS_PLACES": False,
        "UP_FIRST": up_first,
        "STAGES": config.stages,
    }
    return constants, tile_types


def weight_box(config: Shape, paired: bool) -> list[int]:
    """What one fetch of weights brings (see `launch`)."""
    return [config.slice // 8, 2, 8, config.k] if paired else [config.slice, config.k]


def program_of(config: Shape, block: int, gate: str, activation: str, up_first: bool) -> str:
    """The program in Triton's intermediate language."""
    source = source_with(persistent, *persistent_case(config, block, gate, activation, up_first), GluonASTSource)
    target = GPUTarget("cuda", 90, 32)
    backend, context = make_backend(target), ir.context()
    options = backend.parse_options({"num_warps": 4})
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(source.make_ir(target, options, *functions, context))


def main() -> None:
    """Makes the programs of all gates."""
    found = {}
    for gate, block, slice_, activation, up_first in (
        ("none", 128, 128, "gelu", False),
        ("untied", 64, 64, "gelu_tanh", False),
        ("tied", 128, 64, "silu", False),
        ("tied", 64, 64, "silu", True),
    ):
        config = Shape(slice_, 64, 3)
        program = program_of(config, block, gate, activation, up_first)
        found[f"{gate} {block}"] = {
            "parts": program.count("ttg.warp_specialize"), "products": program.count("ttng.warp_group_dot ")
        }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
