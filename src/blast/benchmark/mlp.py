"""The `mlp` suite: one MLP of a real shape, block-sparse and dense, timed in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blast import architectures
from blast.benchmark.timing.interleaved import time_interleaved
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError, unknown_name
from blast.model.convert import to_sparse
from blast.sparsity.one_shot import apply_masks_

# Largest ‖out − ref‖ / ‖ref‖ against the float64 reference; above it no timing is recorded.
ERROR_BOUND = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}


class DenseMlp(nn.Module):
    """The MLP of an architecture, gated (SiLU) or plain (GELU), without biases."""

    def __init__(self, hidden: int, ffn: int, gated: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)
        self.gate_proj = nn.Linear(hidden, ffn, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x)))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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


def _error(model: Callable[[Tensor], Tensor], reference: nn.Module, x: Tensor) -> float:
    expected = reference(x.double())
    return ((model(x).double() - expected).norm() / expected.norm()).item()


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
        settings: `tokens` (list), `dtype`, `repeats`.

    Returns:
        `latency` entries in ms, by provider and number of tokens, with 20 % and 80 % quantiles.

    Raises:
        BlastError: if the sparse output does not match the reference; then nothing is timed.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    dtype = getattr(torch, settings["dtype"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = architectures.get(architecture).shape
    torch.manual_seed(seed)
    dense = DenseMlp(shape.hidden, shape.ffn, shape.gated).to(device, dtype)
    masked = DenseMlp(shape.hidden, shape.ffn, shape.gated).to(device, dtype)
    sides = BlockShape(*block)
    masks = _random_masks(masked, sides, sparsity, seed)
    apply_masks_(masked, masks, sides)
    reference = DenseMlp(shape.hidden, shape.ffn, shape.gated).to(device, torch.float64)
    reference.load_state_dict({name: value.double() for name, value in masked.state_dict().items()})
    sparse = to_sparse(masked, masks)

    metrics = []
    with torch.inference_mode():
        error = _error(
            sparse, reference, torch.randn(max(settings["tokens"]), shape.hidden, device=device, dtype=dtype)
        )
        if not error <= ERROR_BOUND[settings["dtype"]]:
            raise BlastError(
                f"the sparse MLP of '{architecture}' is off by {error:.1e} from the float64 reference "
                f"(bound {ERROR_BOUND[settings['dtype']]:.0e} for {settings['dtype']}); no timing was recorded."
            )
        del reference
        for tokens in settings["tokens"]:
            x = torch.randn(tokens, shape.hidden, device=device, dtype=dtype)
            calls = {"ours": lambda x=x: sparse(x), "dense_eager": lambda x=x: dense(x)}
            for provider, timing in time_interleaved(calls, device, settings["repeats"]).items():
                metrics.append(
                    {
                        "metric": "latency",
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
                        "setting": {"hidden": shape.hidden, "ffn": shape.ffn, "gated": shape.gated, "error": error},
                    }
                )
    return metrics
