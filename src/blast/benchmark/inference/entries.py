"""Timings and rooflines of the suite `kernels` as entries of a record's metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

from blast.benchmark.providers.mlp_inference import Case, Provider
from blast.benchmark.timing.interleaved import Timing
from blast.benchmark.timing.roofline import bound_of

Entry = dict[str, Any]


class Asked(NamedTuple):
    """What was asked for: the MLP, how many tokens, in which dtype."""

    case: Case
    tokens: int
    dtype: str


def _entry(asked: Asked, provider: Provider, metric: str, unit: str, value: float | None, better: str, **more) -> Entry:
    size = asked.case.size
    setting = {"hidden": size.hidden, "ffn": size.ffn, "gated": size.gated, **provider.setting}
    if size.transposed_down:
        setting["down_block"] = "transposed"
    entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
             "n": None, "better": better, "provider": provider.name, "tokens": asked.tokens,
             "dtype": asked.dtype}  # fmt: skip
    if provider.tied is not None:
        entry["tied"] = provider.tied
    return entry | more | {"setting": setting | more.get("setting", {})}


def latency_entry(asked: Asked, provider: Provider, timing: Timing) -> Entry:
    """The milliseconds of one call."""
    facts = {} if provider.error is None else {"error": provider.error}
    if not provider.candidate.graph:
        facts["graph"] = False
    return _entry(
        asked, provider, "latency", "ms", timing.median, "lower",
        low=timing.low, high=timing.high, spread="q20-80", n=timing.n, setting=facts,
    )  # fmt: skip


def missing_entry(
    asked: Asked, name: str, cause: str, status: str = "not run", provider: Provider | None = None
) -> Entry:
    """A provider that was not timed, and why."""
    provider = provider or Provider(name, name)
    return _entry(asked, provider, "latency", "ms", None, "lower", status=status, setting={"cause": cause})


def work_entries(asked: Asked, provider: Provider, timing: Timing) -> list[Entry]:
    """What it had to do, and the share of the binding bound that it reached; nothing where that is not modelled."""
    if provider.work is None:
        return []
    work, ceilings = provider.work, asked.case.machine.ceilings
    bound = bound_of(work, ceilings)
    facts = {
        "bound": bound.name,
        "bound_ms": bound.milliseconds,
        "memory_rate": ceilings.memory,
        "l2_rate": ceilings.l2,
        "flop_rate": ceilings.flops,
    }
    entries = [
        _entry(asked, provider, "flops", "flop", work.flops, "lower"),
        _entry(asked, provider, "bytes", "bytes", work.bytes, "lower"),
        _entry(asked, provider, "launches", "kernels", float(work.launches), "lower"),
    ]
    if work.l2:
        entries.append(_entry(asked, provider, "l2_traffic", "bytes", work.l2, "lower"))
    reached = bound.milliseconds / timing.median
    return [*entries, _entry(asked, provider, "roofline_fraction", "fraction", reached, "higher", setting=facts)]
