"""Launches the kernels of an MLP in the ordinary way and by a replay; prints as JSON what the launcher was given.

There is no GPU: Triton compiles for one, and its driver is a stand-in whose launcher notes its arguments. Run it in a
process of its own, because the tests beside it have Triton interpret.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from blast_kernels.common.quantize import quantize_blocks
from blast_kernels.mlp_inference import launch
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.mlp import launch_mlp
from blast_kernels.mlp_inference.row_lists import drop_columns, gated_row_list, plain_row_list
from inference_cases import mask_of, matrix_of
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

notes: list[tuple[Any, ...]] = []


class Launcher:
    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        notes.append(arguments)


class Driver:
    launcher_cls = Launcher
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448},
        load_binary=lambda name, kernel, shared, device: (object(), name, 32, 0, 1024),
        unload_module=lambda module: None,
    )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def canonical(arguments: tuple[Any, ...], x: int, names: dict[int, str]) -> list[Any]:
    """The arguments without what may differ: addresses get names, in the order in which they come up."""

    def named(address: int) -> str:
        return names.setdefault(address, "x" if address == x else f"new {len(names)}")

    grid, stream, function, metadata = arguments[:3], arguments[3], arguments[4], arguments[5]
    found: list[Any] = [list(grid), stream, function, str(metadata)]
    for argument in arguments[9:]:
        if isinstance(argument, torch.Tensor):
            found.append(named(argument.data_ptr()))
        elif hasattr(argument, "base"):
            sides = (argument.shape, argument.strides, argument.block_shape)
            found.append([named(argument.base.data_ptr()), *map(list, sides), type(argument).__module__])
        elif isinstance(argument, int) and argument in names:
            found.append(names[argument])
        elif isinstance(argument, int) and argument > 1 << 32:
            found.append(named(argument))
        else:
            found.append(str(argument))
    return found


def case(
    name: str, tokens: int, gate: str, configs: tuple[KernelConfig, KernelConfig], fp8: bool = False
) -> dict[str, Any]:
    """One MLP of 128 features and 256 hidden ones, with blocks of 64."""
    launch.kernel_config = lambda *given: configs[given[5] == "none" and given[1] == 2]
    gate_mask, up_mask, down_mask = (
        mask_of("uniform", *shape, seed=seed, density=0.6) for seed, shape in enumerate(((4, 2), (4, 2), (2, 4)))
    )
    if gate == "tied":
        up_mask = gate_mask
    gate_matrix, up, down = (
        matrix_of(mask, 64, 64, torch.bfloat16, seed=seed) for seed, mask in enumerate((gate_mask, up_mask, down_mask))
    )
    blocks = None
    down_list = plain_row_list(*down.index)
    if gate == "untied":
        rows = gated_row_list(*gate_matrix.index, *up.index)
        live = torch.tensor([True, False, True, True])
        offsets, columns, places = drop_columns(*down.index, live)
        down_list, blocks = plain_row_list(offsets, columns, places=places), places.numel()
    else:
        rows = plain_row_list(*up.index)
    bias = torch.randn(256).bfloat16() if gate == "none" else None
    weights = [up.values if gate == "none" else gate_matrix.values, None if gate == "none" else up.values, down.values]
    scales: list[Any] = [None, None, None]
    if fp8:
        pairs = [None if each is None else quantize_blocks(each) for each in weights]
        weights, scales = [p and p[0] for p in pairs], [p and p[1] for p in pairs]
        scales[1] = scales[1] if gate == "untied" else None
    operands = (weights[0], weights[1], rows, bias, weights[2], down_list, torch.randn(128).bfloat16(), 256, 128,
                "silu", gate, *scales, blocks)  # fmt: skip
    fixed = {part.data_ptr(): f"fixed {at}" for at, part in enumerate(operands) if isinstance(part, torch.Tensor)}
    first, second = (torch.randn(1, tokens, 128).bfloat16() for _ in range(2))
    out, replay = launch_mlp(first, *operands, record=True)
    if replay is None:
        return {"name": name, "replay": None}
    notes.clear()
    repeated = replay(second)
    by_replay = list(notes)
    notes.clear()
    launch_mlp(second, *operands)
    found = []
    for each in (by_replay, list(notes)):
        names = dict(fixed)
        found.append([canonical(arguments, second.data_ptr(), names) for arguments in each])
    knobs.runtime.launch_enter_hook.add(ignore)
    watched = replay(second)
    knobs.runtime.launch_enter_hook.remove(ignore)
    unaligned = torch.randn(tokens * 128 + 1).bfloat16()[1:].view(1, tokens, 128)
    return {
        "name": name, "replay": found[0], "ordinary": found[1], "shape": list(repeated.shape),
        "refused": [watched is None, replay(unaligned) is None, replay(second.float()) is None,
                    replay(second.mT.contiguous().mT) is None or tokens == 1],
        "same_shape": repeated.shape == out.shape,
    }  # fmt: skip


def ignore(_: Any) -> None:
    pass


def main() -> None:
    driver.set_active(Driver())
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132)
    stream = KernelConfig("stream", 16, 32, 64, 2, 4)
    split = stream._replace(split=2)
    tiles = KernelConfig("tiles", 64, 64, 64, 2, 4)
    persistent = KernelConfig("persistent", 256, 64, 64, 3, 4, False, 2)
    cases = [
        case("stream, with a bias", 1, "none", (stream, stream)),
        case("stream, two masks", 3, "untied", (stream, stream)),
        case("stream, one mask", 1, "tied", (stream, stream)),
        case("a split that the first kernel clears for", 2, "untied", (stream, split)),
        case("both split", 2, "none", (split, split)),
        case("tiles, two masks", 40, "untied", (tiles, tiles)),
        case("tiles, one mask", 40, "tied", (tiles._replace(weights_first=False), tiles)),
        case("persistent", 300, "untied", (persistent, tiles)),
        case("fp8", 1, "untied", (stream, stream), fp8=True),
    ]
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
