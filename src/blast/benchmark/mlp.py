"""The `mlp` suite: one MLP of a real shape, block-sparse and dense, timed in the same run."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blast import architectures
from blast.benchmark.timing.interleaved import time_interleaved
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError, unknown_name
from blast.model.convert import to_sparse
from blast.model.fuse import fuse
from blast.model.memory import model_bytes
from blast.sparsity.one_shot import apply_masks_

# Largest ‖out − ref‖ / ‖ref‖ against the float64 reference; above it no timing is recorded.
ERROR_BOUND = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}
# Models that take turns, at most.
MOST_MODELS = 64


class DenseMlp(nn.Module):
    """The MLP of an architecture: gated (SiLU) without biases, or plain (GELU) with biases."""

    def __init__(self, hidden: int, ffn: int, gated: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, ffn, bias=not gated)
        self.down_proj = nn.Linear(ffn, hidden, bias=not gated)
        self.gate_proj = nn.Linear(hidden, ffn, bias=False) if gated else None
        self.act_fn = nn.SiLU() if gated else nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _random_masks(model: nn.Module, block: BlockShape, sparsity: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            rows, cols = module.out_features // block.rows, module.in_features // block.cols
            live = max(1, round((1 - sparsity) * rows * cols))
            mask = torch.zeros(rows * cols, dtype=torch.bool)
            mask[torch.randperm(rows * cols, generator=generator)[:live]] = True
            masks[name] = mask.view(rows, cols)
    return masks


def _checked_error(model: Callable[[Tensor], Tensor], reference: nn.Module, x: Tensor, name: str, dtype: str) -> float:
    """The error of the sparse output.

    Raises:
        BlastError: if it is over the bound.
    """
    expected = reference(x.double())
    error = ((model(x).double() - expected).norm() / expected.norm()).item()
    if not error <= ERROR_BOUND[dtype]:
        raise BlastError(
            f"the sparse MLP of '{name}' is off by {error:.1e} from the float64 reference "
            f"(bound {ERROR_BOUND[dtype]:.0e} for {dtype}); no timing was recorded."
        )
    return error


def _copies(model: nn.Module, megabytes: float) -> list[nn.Module]:
    """The model and equal ones in other memory, whose weights take `megabytes` together."""
    wanted = math.ceil(megabytes * 1e6 / model_bytes(model).weights)
    return [model, *(copy.deepcopy(model) for _ in range(min(MOST_MODELS, wanted) - 1))]


def _in_turn(models: Sequence[nn.Module], x: Tensor) -> Callable[[], Tensor]:
    turns = itertools.cycle(models)
    return lambda: next(turns)(x)


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Times the MLP of an architecture.

    The dense baseline has random weights without masks; both run in turn in the same process. The sparse output is
    first compared with a float64 reference on fresh random inputs.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks; masks are uniformly random.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list), `dtype`, `repeats`, and those of `MlpSettings`.

    Returns:
        `latency` entries in ms, by provider and number of tokens, with 20 % and 80 % quantiles; with `matrix` also
        `matrix_latency`, of the up projection.

    Raises:
        BlastError: if the sparse output does not match the reference, then nothing is timed; or if the clock does not
            fit.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    dtype = getattr(torch, settings["dtype"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = architectures.get(architecture).shape
    sides = BlockShape(*block)
    torch.manual_seed(seed)
    # `fuse` replaces children of a model.
    dense, masked = (
        nn.Sequential(DenseMlp(shape.hidden, shape.ffn, shape.gated)).to(device, dtype).eval() for _ in range(2)
    )
    masks = _random_masks(masked, sides, sparsity, seed)
    apply_masks_(masked, masks, sides)
    reference = copy.deepcopy(masked).double()
    sparse = to_sparse(masked, masks)
    clock = {"wall": time.perf_counter_ns, "processor": time.thread_time_ns}[settings["clock"]]
    if settings["clock"] == "processor" and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise BlastError("clock: processor times one thread on a CPU; set threads: 1, or clock: wall.")
    timed = {"latency": (dense, _copies(sparse, settings["rotate_mb"]))}
    if settings["matrix"]:
        timed["matrix_latency"] = (dense[0].up_proj, _copies(copy.deepcopy(sparse[0].up_proj), settings["rotate_mb"]))
    if settings["fused"]:
        for model in timed["latency"][1]:
            # Uniform masks leave more hidden blocks dead than trained ones: nothing is gained by skipping them.
            fuse(model, skip_dead=False)

    metrics = []
    with torch.inference_mode():
        x = torch.randn(max(settings["tokens"]), shape.hidden, device=device, dtype=dtype)
        error = _checked_error(timed["latency"][1][0], reference, x, architecture, settings["dtype"])
        del reference
        for metric, (baseline, ours) in timed.items():
            baselines = _copies(baseline, settings["rotate_mb"])
            for tokens in settings["tokens"]:
                x = torch.randn(tokens, shape.hidden, device=device, dtype=dtype)
                calls = {"ours": _in_turn(ours, x), "dense_eager": _in_turn(baselines, x)}
                for provider, timing in time_interleaved(calls, device, settings["repeats"], clock=clock).items():
                    sizes = {"hidden": shape.hidden, "ffn": shape.ffn, "gated": shape.gated, "error": error}
                    models = len(ours if provider == "ours" else baselines)
                    metrics.append(
                        {
                            "metric": metric,
                            "task": None,
                            "unit": "ms",
                            "value": timing.median,
                            "low": timing.low,
                            "high": timing.high,
                            "spread": "q20-80",
                            "n": timing.n,
                            "better": "lower",
                            "provider": provider,
                            "tokens": tokens,
                            "dtype": settings["dtype"],
                            "setting": sizes | {"models": models, "clock": settings["clock"]},
                        }
                    )
    return metrics
