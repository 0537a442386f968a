"""The `kernel_plans` suite: times every candidate config of the two products of an MLP on a GPU.

It shows how much slower the chosen config is than the best one. `blast tuned-plans` makes the table of the GPU from it.
Masks are uniform. Each config is compared with a float32 reference before it is timed; a config that fails has an entry
with the cause. The suite needs a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.search_space import candidates
from blast_kernels.mlp_inference.tuned_configs import config_without_table, kernel_config
from torch import Tensor

from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.kernels import mlp_size
from blast.benchmark.plans.compilation import Job, compile_all
from blast.benchmark.plans.products import Product, products_of
from blast.benchmark.providers.mlp_inference import first_line
from blast.benchmark.timing.cuda_graphs import (
    ERROR_BOUND,
    Candidate,
    capture,
    error_of,
    plain_memory,
    sampled_rows,
    time_in_turn,
)
from blast.benchmark.timing.device import gpu_for
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError, unknown_name

# Tokens compared with the reference, and the most seconds for timing all configs of one product.
CHECKED_TOKENS = 64
SHARE = 1.5

Entry = dict[str, Any]


class Request(NamedTuple):
    """One product at one number of tokens."""

    size: MlpSize
    product: Product
    tokens: int
    dtype: str
    tied: bool | None


class Outcome(NamedTuple):
    """The result of a config: its time and error, or the cause of its failure."""

    timing: Timing | None = None
    error: float | None = None
    cause: str | None = None


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Times the configs of the two products of an MLP.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list), `dtype`, `repeats`, and the fields of
            `blast.benchmark.settings.KernelPlansSettings`.

    Returns:
        For each product and number of tokens the `latency` of each config in ms, with 20 % and 80 % quantiles. Its
        `setting` names the config (`plan`) and the product (`part`, `gate`, `block`, `records`, `row_blocks`). `picked`
        is whether the kernels run this config, `rules` whether the heuristic alone would. A config that does not run
        has no value; status and cause say why. `pick_cost` is how much slower the chosen config is than the best one,
        for the choice of the heuristic (`rules`) and of the tuned table (`table`).

    Raises:
        BlastError: without a GPU, for an unknown dtype, or if a config left the GPU unusable.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    size = mlp_size(architecture, block, settings["dtype"], settings["down_block"])
    device, cache = this_gpu()
    generator = torch.Generator(device).manual_seed(10_000 * seed)
    ties = sorted({tied and size.gated for tied in settings["tied"]})
    metrics: list[Entry] = []
    with torch.inference_mode(), plain_memory():
        spent = 0.0
        for tied in ties:
            products = products_of(size, sparsity, tied, generator, cache)
            # The down projection is the same whether gate and up share a mask or not.
            products = products if tied == ties[0] else products[:1]
            flags = [None if product.gate == "none" else tied for product in products]
            requests = [
                Request(size, product, tokens, settings["dtype"], flag)
                for product, flag in zip(products, flags, strict=True)
                for tokens in settings["tokens"]
            ]
            found = compile_all(job for request in requests for job in _jobs(request).values())
            started = time.monotonic()
            for request in requests:
                left = settings["seconds"] - spent - (time.monotonic() - started)
                metrics += _measure_product(request, found, generator, left, settings)
            spent += time.monotonic() - started
    return metrics


def this_gpu() -> tuple[torch.device, int]:
    """The GPU and the size of its L2 cache in bytes.

    Raises:
        BlastError: if there is no GPU.
    """
    device = gpu_for("kernel_plans")
    return device, torch.cuda.get_device_properties(device).L2_cache_size


def _jobs(request: Request) -> dict[KernelConfig, Job]:
    """The compile job of each config to try; the chosen configs come first."""
    product, block, dtype = request.product, request.product.block, request.size.dtype
    item = torch.empty(0, dtype=dtype).element_size()
    tried = candidates(request.tokens, product.rows, *block, product.gate, product.row_blocks, item, item)
    configs = dict.fromkeys([*_picks(request).values(), *tried])
    return {
        config: Job(config, product.gate, product.activation, product.bias is not None, block, dtype)
        for config in configs
    }


def _picks(request: Request) -> dict[str, KernelConfig]:
    """The config that the kernels run (`table`) and the one they would run without a tuned table (`rules`)."""
    product, block = request.product, request.product.block
    place = (request.tokens, product.rows)
    values = product.sets[0][0]
    kind = (*block, product.gate, values.dtype, values.device)
    return {
        "rules": config_without_table(*place, product.row_blocks, *kind),
        "table": kernel_config(*place, product.blocks, *kind),
    }


def _measure_product(
    request: Request, found: dict[Job, str | None], generator: torch.Generator, left: float, settings: dict[str, Any]
) -> list[Entry]:
    if left <= 0:
        cause = "the point ran out of time; raise 'seconds' or split the point"
        return [_entry(request, "latency", "ms", None, {"cause": cause}, status="not run", unfinished=True)]
    product = request.product
    x = product.input(request.tokens, generator)
    y = x.new_empty(request.tokens, product.out_features)
    rows = sampled_rows(request.tokens, CHECKED_TOKENS, x.device)
    expected = product.expected(x[rows])
    tried, rounds = {}, {}
    for config, job in _jobs(request).items():
        if found[job] is not None:
            tried[config] = Outcome(cause=found[job])
            continue
        tried[config], run_round = _prepared(config, product, x, y, expected, rows, ERROR_BOUND[settings["dtype"]])
        if run_round is not None:
            rounds[str(tuple(config))] = config, (run_round, len(product.sets))
    share = max(0.2, min(SHARE, left))
    timings = time_in_turn({name: run_round for name, (_, run_round) in rounds.items()}, settings["repeats"], share)
    for name, timing in timings.items():
        config = rounds[name][0]
        tried[config] = tried[config]._replace(timing=timing)
    return _entries(request, tried)


def _prepared(
    config: KernelConfig, product: Product, x: Tensor, y: Tensor, expected: Tensor, rows: Tensor, bound: float
) -> tuple[Outcome, Callable[[], None] | None]:
    """The error of a config and one round of its calls, or the cause of its failure."""
    try:
        call = product.call(config, x, y)

        def poisoned(number: int) -> Tensor:
            y.fill_(float("nan"))
            return call(number)

        error = error_of(poisoned, expected, rows)
        if not error <= bound:
            return Outcome(
                cause=f"its output is off by {error:.1e} from the float32 reference (bound {bound:.0e})"
            ), None
        return Outcome(error=error), capture(Candidate(call, len(product.sets)))
    except Exception as fault:  # a config may fail in any way
        try:
            torch.cuda.synchronize() if y.is_cuda else None
        except Exception as gpu_fault:
            raise BlastError(f"{config} left the GPU unusable: {first_line(gpu_fault)}.") from gpu_fault
        return Outcome(cause=first_line(fault)), None


def _entries(request: Request, tried: dict[KernelConfig, Outcome]) -> list[Entry]:
    picks, entries = _picks(request), []
    for config, result in tried.items():
        facts = {"plan": list(config), "picked": config == picks["table"], "rules": config == picks["rules"]}
        if result.timing is None:
            facts |= {"cause": result.cause or "it was not timed"}
            entries.append(_entry(request, "latency", "ms", None, facts, status="failed"))
            continue
        low, high, n = result.timing.low, result.timing.high, result.timing.n
        spread = {"low": low, "high": high, "spread": "q20-80", "n": n}
        entries.append(
            _entry(request, "latency", "ms", result.timing.median, facts | {"error": result.error}, **spread)
        )
    times = {config: result.timing.median for config, result in tried.items() if result.timing is not None}
    if not times:
        return entries
    best = min(times, key=lambda config: times[config])
    for by, config in picks.items():
        facts = {"by": by, "plan": list(config), "best": list(best)}
        if config in times:
            entries.append(_entry(request, "pick_cost", "fraction", times[config] / times[best] - 1, facts))
        else:
            facts["cause"] = tried[config].cause
            entries.append(_entry(request, "pick_cost", "fraction", None, facts, status="failed"))
    return entries


def _entry(request: Request, metric: str, unit: str, value: float | None, facts: dict[str, Any], **more: Any) -> Entry:
    size, product = request.size, request.product
    setting = {
        "hidden": size.hidden, "ffn": size.ffn, "gated": size.gated, "mask": "uniform", "part": product.part,
        "gate": product.gate, "block": list(product.block), "records": product.rows,
        "row_blocks": round(product.row_blocks, 4),
    }  # fmt: skip
    entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
             "n": None, "better": "lower", "provider": "ours", "tokens": request.tokens,
             "dtype": request.dtype}  # fmt: skip
    if request.tied is not None:
        entry["tied"] = request.tied
    return entry | more | {"setting": setting | facts}
