"""The `kernel_plans` suite: every plausible config of the front and of the down projection of an MLP, on a GPU.

It shows what a pick costs against the best config; `blast tuned-plans` makes the table of the GPU from it. Uniform
random masks; each config is compared with a float32 reference before it is timed, and one that fails has an entry that
says so. It refuses a machine without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.search_space import candidates
from blast_kernels.mlp_inference.tuned_configs import kernel_config
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
)
from blast.benchmark.timing.cuda_graphs import time_in_turn as time_rounds
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError, unknown_name

# Tokens that are compared with the reference, and seconds of timing of all configs of one product at most.
CHECKED_TOKENS = 64
SHARE = 1.5

Entry = dict[str, Any]


class Asked(NamedTuple):
    """One product at one number of tokens."""

    size: MlpSize
    product: Product
    tokens: int
    dtype: str
    tied: bool | None


class Tried(NamedTuple):
    """What came of a config: its time and error, or why there is none."""

    timing: Timing | None = None
    error: float | None = None
    cause: str | None = None


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Times the configs of the two products of an MLP.

    Args:
        architecture: Whose MLP.
        sparsity: Share of empty blocks.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list), `dtype`, `repeats`, and the fields of
            `blast.benchmark.settings.KernelPlansSettings`.

    Returns:
        For each product and number of tokens the `latency` of each config in ms, with 20 % and 80 % quantiles; its
        `setting` says which config (`plan`), of what (`part`, `gate`, `block`, `records`, `row_blocks`), whether the
        kernels run it (`picked`) and whether the rules alone would (`rules`). A config that does not run has no value,
        and status and cause say why. `pick_cost` is how much slower the pick is than the best config, by `rules` and by
        `table`.

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
            made = products_of(size, sparsity, tied, generator, cache)
            # The down projection is the same with and without a tie.
            made = made if tied == ties[0] else made[:1]
            flags = [None if product.gate == "none" else tied for product in made]
            asked = [
                Asked(size, product, tokens, settings["dtype"], flag)
                for product, flag in zip(made, flags, strict=True)
                for tokens in settings["tokens"]
            ]
            found = compile_all(job for one in asked for job in _jobs(one).values())
            started = time.monotonic()
            for one in asked:
                left = settings["seconds"] - spent - (time.monotonic() - started)
                metrics += _measure_product(one, found, generator, left, settings)
            spent += time.monotonic() - started
    return metrics


def this_gpu() -> tuple[torch.device, int]:
    """The GPU and the bytes of its cache.

    Raises:
        BlastError: if there is none.
    """
    if not torch.cuda.is_available():
        raise BlastError(
            "the suite 'kernel_plans' times GPU kernels and this machine has no CUDA GPU; "
            "run the point on one with `python -m blast job` and take its records in with `blast import`."
        )
    device = torch.device("cuda", torch.cuda.current_device())
    return device, torch.cuda.get_device_properties(device).L2_cache_size


def _jobs(asked: Asked) -> dict[KernelConfig, Job]:
    """What has to be compiled for each config that is tried; the picks come first."""
    product, block, dtype = asked.product, asked.product.block, asked.size.dtype
    item = torch.empty(0, dtype=dtype).element_size()
    tried = candidates(asked.tokens, product.records, *block, product.gate, product.row_blocks, item, item)
    configs = dict.fromkeys([*_picks(asked).values(), *tried])
    return {
        config: Job(config, product.gate, product.activation, product.bias is not None, block, dtype)
        for config in configs
    }


def _picks(asked: Asked) -> dict[str, KernelConfig]:
    """The config that the kernels run, `table`, and the one they would run without a table, `rules`."""
    product, block = asked.product, asked.product.block
    place = (asked.tokens, product.records)
    values = product.sets[0][0]
    wide = values.dtype == torch.float32
    return {
        "rules": heuristic_config(*place, *block, product.gate, wide, row_blocks=product.row_blocks),
        "table": kernel_config(*place, values.shape[0], *block, product.gate, values.dtype, values.device),
    }


def _measure_product(
    asked: Asked, found: dict[Job, str | None], generator: torch.Generator, left: float, settings: dict[str, Any]
) -> list[Entry]:
    if left <= 0:
        cause = "the seconds of this point were over; raise 'seconds' or split the point"
        return [_entry(asked, "latency", "ms", None, {"cause": cause}, status="not run", unfinished=True)]
    product = asked.product
    x = product.input(asked.tokens, generator)
    y = x.new_empty(asked.tokens, product.out_features)
    rows = sampled_rows(asked.tokens, CHECKED_TOKENS, x.device)
    expected = product.expected(x[rows])
    tried, rounds = {}, {}
    for config, job in _jobs(asked).items():
        if found[job] is not None:
            tried[config] = Tried(cause=found[job])
            continue
        tried[config], play = _prepared(config, product, x, y, expected, rows, ERROR_BOUND[settings["dtype"]])
        if play is not None:
            rounds[str(tuple(config))] = config, (play, len(product.sets))
    share = max(0.2, min(SHARE, left))
    timings = time_rounds({name: play for name, (_, play) in rounds.items()}, settings["repeats"], share)
    for name, timing in timings.items():
        config = rounds[name][0]
        tried[config] = tried[config]._replace(timing=timing)
    return _entries(asked, tried)


def _prepared(
    config: KernelConfig, product: Product, x: Tensor, y: Tensor, expected: Tensor, rows: Tensor, bound: float
) -> tuple[Tried, Callable[[], None] | None]:
    """The error of a config and one round of its calls, or why it cannot be timed."""
    try:
        call = product.call(config, x, y)

        def poisoned(number: int) -> Tensor:
            y.fill_(float("nan"))
            return call(number)

        error = error_of(poisoned, expected, rows)
        if not error <= bound:
            return Tried(cause=f"its output is off by {error:.1e} from the float32 reference (bound {bound:.0e})"), None
        return Tried(error=error), capture(Candidate(call, len(product.sets)))
    except Exception as fault:  # a config may fail in any way
        try:
            torch.cuda.synchronize() if y.is_cuda else None
        except Exception as lost:
            raise BlastError(f"{config} left the GPU unusable: {first_line(lost)}.") from lost
        return Tried(cause=first_line(fault)), None


def _entries(asked: Asked, tried: dict[KernelConfig, Tried]) -> list[Entry]:
    picks, entries = _picks(asked), []
    for config, result in tried.items():
        facts = {"plan": list(config), "picked": config == picks["table"], "rules": config == picks["rules"]}
        if result.timing is None:
            facts |= {"cause": result.cause or "it was not timed"}
            entries.append(_entry(asked, "latency", "ms", None, facts, status="failed"))
            continue
        low, high, n = result.timing.low, result.timing.high, result.timing.n
        spread = {"low": low, "high": high, "spread": "q20-80", "n": n}
        entries.append(_entry(asked, "latency", "ms", result.timing.median, facts | {"error": result.error}, **spread))
    times = {config: result.timing.median for config, result in tried.items() if result.timing is not None}
    if not times:
        return entries
    best = min(times, key=lambda config: times[config])
    for by, config in picks.items():
        facts = {"by": by, "plan": list(config), "best": list(best)}
        if config in times:
            entries.append(_entry(asked, "pick_cost", "fraction", times[config] / times[best] - 1, facts))
        else:
            facts["cause"] = tried[config].cause
            entries.append(_entry(asked, "pick_cost", "fraction", None, facts, status="failed"))
    return entries


def _entry(asked: Asked, metric: str, unit: str, value: float | None, facts: dict[str, Any], **more: Any) -> Entry:
    size, product = asked.size, asked.product
    setting = {
        "hidden": size.hidden, "ffn": size.ffn, "gated": size.gated, "mask": "uniform", "part": product.part,
        "gate": product.gate, "block": list(product.block), "records": product.records,
        "row_blocks": round(product.row_blocks, 4),
    }  # fmt: skip
    entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
             "n": None, "better": "lower", "provider": "ours", "tokens": asked.tokens,
             "dtype": asked.dtype}  # fmt: skip
    if asked.tied is not None:
        entry["tied"] = asked.tied
    return entry | more | {"setting": setting | facts}
