"""The page that `blast summary` prints."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from blast.experiment.columns import columns, counted
from blast.experiment.compare.worth import RULE, Spread, Summary

NOT_MEASURED = "not measured"
HEADER = (
    "model", "data", "method", "sparsity", "block", "variant", "metric", "loss", "noise", "seeds", "bytes", "reading",
    "worth it",
)  # fmt: skip
# Lines of the last table, without --all.
MOST = 30


def page(found: Summary, everything: bool = False) -> Iterator[str]:
    """The lines of a summary.

    Args:
        found: From `worth.summary_of`.
        everything: Whether to show all configurations of a large grid.
    """
    lost = "".join(f", {count} {status}" for status, count in found.lost.items())
    yield f"Summary of {found.name}: {counted(found.done, 'point')} done{lost}"
    yield ""
    yield "What each sparsity costs, saves and gains; loss, bytes and time against dense:"
    names = [f"T{number}" for number, _ in enumerate(found.machines, 1)]
    rows = [["method", "sparsity", "loss: median (worst)", "bytes", *names, "worth it"]]
    for each in found.sparsities:
        losses = sorted(each.losses)
        middle = (losses[(len(losses) - 1) // 2] + losses[len(losses) // 2]) / 2 if losses else math.nan
        loss = f"{middle:+.2f} % ({losses[-1]:+.2f} %)" if losses else NOT_MEASURED
        saved = f"{each.bytes_saved.middle:.2f}x fewer" if each.bytes_saved else NOT_MEASURED
        times = [_speed(each.times[machine]) for machine in found.machines]
        rows.append([each.method, f"{100 * each.sparsity:g} %", loss, saved, *times, each.worth])
    yield from columns(rows, right=[1])
    for number, machine in enumerate(found.machines, 1):
        whose = "measured the grid" if number <= found.here else "recorded"
        yield f"  T{number}: {machine} ({whose})"
    yield "  T: time of dense over ours in the benchmarks of a machine: median (lowest to highest; number of cases)"
    yield "  over all models and block sizes timed at this sparsity; they are not the times of the models of the grid"
    yield ""
    yield from textwrap.wrap(RULE, 120, initial_indent="  ", subsequent_indent="  ")
    if not found.configurations:
        return
    yield ""
    yield "Each configuration:"
    shown = found.configurations if everything else found.configurations[:MOST]
    rows = [[*HEADER]]
    for one in shown:
        rows.append([
            one.model, one.dataset, one.method, f"{100 * one.sparsity:g} %", one.block, one.variant, one.metric,
            _percent(one.loss), _percent(one.noise).lstrip("+"), str(one.seeds), _times(one.bytes_saved),
            _times(one.reading), one.worth,
        ])  # fmt: skip
    if not any(one.variant for one in shown):
        rows = [[cell for place, cell in enumerate(row) if HEADER[place] != "variant"] for row in rows]
    yield from columns(rows, right=[rows[0].index(name) for name in ("sparsity", "loss", "noise", "seeds")])
    if len(shown) < len(found.configurations):
        yield f"  … and {len(found.configurations) - len(shown)} more; --all shows them"
    yield "  reading: speed while lm-eval's requests are scored, over that of dense; bytes: dense over ours"


def _speed(spread: Spread | None) -> str:
    if spread is None:
        return NOT_MEASURED
    return f"{spread.middle:.2f}x ({spread.lowest:.2f} to {spread.highest:.2f}; {spread.cases})"


def _percent(value: float) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:+.2f} %"


def _times(value: float) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:.2f}x"


def as_json(found: Summary) -> dict[str, Any]:
    """A summary as plain values; what was not measured is null."""
    return _plain(asdict(found)) | {"rule": RULE}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
