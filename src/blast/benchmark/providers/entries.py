"""Record entries of the suites `kernels` and `training_mlp`: latency, roofline, and providers that did not run."""

from __future__ import annotations

from typing import Any, NamedTuple

from blast.benchmark.providers.mlp_inference import Case, Provider
from blast.benchmark.timing.interleaved import Timing
from blast.benchmark.timing.roofline import bound_of

Entry = dict[str, Any]


class Request(NamedTuple):
    """What the entries describe: the MLP, the number of tokens and the dtype."""

    case: Case
    tokens: int
    dtype: str


def _entry(
    request: Request, provider: Provider, metric: str, unit: str, value: float | None, better: str, **more
) -> Entry:
    size = request.case.size
    setting = {"hidden": size.hidden, "ffn": size.ffn, "gated": size.gated, **provider.setting}
    if size.transposed_down:
        setting["down_block"] = "transposed"
    entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
             "n": None, "better": better, "provider": provider.name, "tokens": request.tokens,
             "dtype": request.dtype}  # fmt: skip
    if provider.tied is not None:
        entry["tied"] = provider.tied
    return entry | more | {"setting": setting | more.get("setting", {})}


def latency_entry(request: Request, provider: Provider, timing: Timing) -> Entry:
    """The latency of one call in milliseconds."""
    facts = {} if provider.error is None else {"error": provider.error}
    if not provider.candidate.graph:
        facts["graph"] = False
    return _entry(
        request, provider, "latency", "ms", timing.median, "lower",
        low=timing.low, high=timing.high, spread="q20-80", n=timing.n, setting=facts,
    )  # fmt: skip


def missing_entry(
    request: Request, name: str, cause: str, status: str = "not run", provider: Provider | None = None
) -> Entry:
    """The entry of a provider that was not timed; its setting holds the cause."""
    provider = provider or Provider(name, name)
    return _entry(request, provider, "latency", "ms", None, "lower", status=status, setting={"cause": cause})


def work_entries(request: Request, provider: Provider, timing: Timing) -> list[Entry]:
    """Work of a call and the fraction of its roofline bound that was reached; empty if the work is not modelled."""
    if provider.work is None:
        return []
    work, ceilings = provider.work, request.case.machine.ceilings
    bound = bound_of(work, ceilings)
    facts = {
        "bound": bound.name,
        "bound_ms": bound.milliseconds,
        "memory_rate": ceilings.memory,
        "l2_rate": ceilings.l2,
        "flop_rate": ceilings.flops,
    }
    entries = [
        _entry(request, provider, "flops", "flop", work.flops, "lower"),
        _entry(request, provider, "bytes", "bytes", work.bytes, "lower"),
        _entry(request, provider, "launches", "kernels", float(work.launches), "lower"),
    ]
    if work.l2:
        entries.append(_entry(request, provider, "l2_traffic", "bytes", work.l2, "lower"))
    reached = bound.milliseconds / timing.median
    return [*entries, _entry(request, provider, "roofline_fraction", "fraction", reached, "higher", setting=facts)]
