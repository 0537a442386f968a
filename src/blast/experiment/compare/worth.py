"""What each sparsity costs in quality, saves in bytes and gains in time, and whether it is worth it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blast.errors import BlastError
from blast.experiment.analysis.comparison import main_metric, missing, summarise
from blast.experiment.analysis.paired import LIMIT
from blast.experiment.analysis.ratio import ratios
from blast.experiment.records.rows import SCORING_RATE
from blast.experiment.records.table import load_table

NO_BLOCK = "–"
# A gain of less is not worth another format of the weights.
LEAST_GAIN = 1.05
RULE = (
    f"Rule: a sparsity is worth it if its loss with noise is under {LIMIT:g} % of dense (the paper's limit), and it is "
    f"at least {LEAST_GAIN:g} times as fast as the faster of dense eager and dense compiled, by the median of the "
    f"timed cases of a machine. `for memory`: the loss is under the limit, and only the bytes are at least "
    f"{LEAST_GAIN:g} times fewer. `no`: the loss without noise is over the limit, or nothing is gained. "
    "`undecided`: the limit lies within the noise. Noise: the spread over seeds, or with one seed two standard errors. "
    "Over several models and variants the majority decides."
)


@dataclass(frozen=True)
class Spread:
    """A ratio of dense to ours over some timed cases."""

    middle: float
    lowest: float
    highest: float
    cases: int


@dataclass(frozen=True)
class Configuration:
    """One pruned configuration against its dense model. NaN stands for what was not measured.

    Attributes:
        block: Its block, or `–` for a model without block-sparse matrices; such a one has no times.
        variant: What its id has besides model, data, method, sparsity and block; levers and trials have something.
        loss: Loss of its main metric relative to dense, in percent; positive is worse.
        noise: Its noise, see `RULE`.
        bytes_saved: Bytes of dense weights over its own.
        reading: Its speed while lm-eval's requests are scored, over that of dense.
        worth: `yes`, `for memory`, `no`, `undecided` or `not measured`.
    """

    grid: str
    model: str
    dataset: str
    method: str
    sparsity: float
    block: str
    variant: str
    metric: str
    seeds: int
    loss: float
    noise: float
    bytes_saved: float
    reading: float
    worth: str


@dataclass(frozen=True)
class AtSparsity:
    """One sparsity of a method, over all models of a grid."""

    method: str
    sparsity: float
    losses: tuple[float, ...]
    bytes_saved: Spread | None
    times: dict[str, Spread | None]
    worth: str


@dataclass(frozen=True)
class Summary:
    """A grid, or what was recorded on a machine, on one page.

    Attributes:
        name: Of the grid or machine.
        machines: The machines whose times are shown; those of the grid first.
        here: How many of them measured the grid itself.
        done: Number of points with a result.
        lost: The points that failed or were not run, by status.
        sparsities: By method and sparsity.
        configurations: Each configuration.
    """

    name: str
    machines: list[str]
    here: int
    done: int
    lost: dict[str, int]
    sparsities: list[AtSparsity]
    configurations: list[Configuration]


def summary_of(folder: Path, recorded_dir: Path) -> Summary:
    """The summary of a grid folder, or of a folder of `results/recorded`.

    Args:
        folder: `results/<grid>` or `results/recorded/<hardware>`.
        recorded_dir: `results/recorded`, for times of other machines.

    Raises:
        BlastError: if the folder holds no results, or damaged ones.
    """
    if (folder / "runs.json").is_file():
        table = load_table(folder / "no local grid", folder.parent)
        own = table[table["hardware"] == folder.name]
    else:
        table = load_table(folder, recorded_dir)
        own = table[table["source"] == "local"]
    if own.empty:
        raise BlastError(f"{folder}: holds no results; run the grid first, or give a folder of results/recorded.")
    times = _times(table)
    here = sorted({name for name in own["hardware"] if isinstance(name, str)})
    machines = [*here, *sorted(set(times["hardware"]) - set(here))]
    configurations = _configurations(own, times, machines)
    lost = missing(own)
    return Summary(
        name=folder.name,
        machines=machines,
        here=len(here),
        done=own[own["status"] == "ok"].groupby("grid")["point"].nunique().sum(),
        lost={status: int(count) for status, count in lost["status"].value_counts().items()},
        sparsities=_by_sparsity(configurations, times, machines),
        configurations=configurations,
    )


def _times(table: pd.DataFrame) -> pd.DataFrame:
    """Speed-ups of ours over the faster dense provider, a row for each timed case."""
    keys = ["hardware", "suite", "point", "grid", "tokens", "batch", "dtype", "tied", "seed", "provider"]
    found = [ratios(table, "latency", baseline) for baseline in ("dense_eager", "dense_compiled")]
    both = pd.concat([each for each in found if len(each)] or found[:1], ignore_index=True)
    both = both[both["provider"] == "ours"]
    # The smaller ratio is that of the faster dense provider.
    return both.sort_values("ratio", kind="stable").drop_duplicates(keys)


def _spread(values: Sequence[float]) -> Spread | None:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return None
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return Spread(middle, known[0], known[-1], len(known))


def _at(times: pd.DataFrame, machine: str, sparsity: float) -> Spread | None:
    same = (times["hardware"] == machine) & ((times["sparsity"].astype(float) - sparsity).abs() < 1e-6)
    return _spread(list(times[same]["ratio"]))


def _configurations(own: pd.DataFrame, times: pd.DataFrame, machines: Sequence[str]) -> list[Configuration]:
    scores = main_metric(summarise(own))
    # The first task, and our own test data before it.
    scores = scores.drop_duplicates(["grid", "hardware", "config"])
    dense_bytes, dense_rates = (_means(own, metric) for metric in ("weights_bytes", SCORING_RATE))
    found = []
    for row in scores[scores["method"] != "dense"].sort_values(["method", "sparsity"]).itertuples(index=False):
        place, dense = (row.grid, row.hardware, row.config), (row.grid, row.hardware, row.dense_config)
        saved = dense_bytes.get(dense, math.nan) / dense_bytes.get(place, math.nan)
        reading = dense_rates.get(place, math.nan) / dense_rates.get(dense, math.nan)
        noise = row.noise if not math.isnan(row.noise) else 2 * row.relative_error
        block = row.block if isinstance(row.block, str) else NO_BLOCK
        timed = machines if block != NO_BLOCK else ()
        gains = [spread.middle for machine in timed if (spread := _at(times, machine, row.sparsity))]
        found.append(
            Configuration(
                row.grid, row.model, row.dataset, row.method, row.sparsity, block, _variant(row), row.metric, row.seeds,
                row.relative, noise, saved, reading, worth(row.relative, noise, saved, gains),
            )
        )  # fmt: skip
    return found


def _variant(row: Any) -> str:
    parts = row.config.removeprefix(f"{row.model}.{row.dataset}.").split(".")
    return ".".join(part for part in parts if part != row.method and not re.fullmatch(r"s\d+(p\d+)?|b\d+(x\d+)?", part))


def _means(table: pd.DataFrame, metric: str) -> dict[tuple[Any, ...], float]:
    rows = table[(table["metric"] == metric) & (table["status"] == "ok") & table["step"].isna()]
    rows = rows[rows["provider"].isna()]
    return rows.groupby(["grid", "hardware", "config"])["value"].mean().to_dict()


def worth(loss: float, noise: float, saved: float, gains: Sequence[float]) -> str:
    """Whether a configuration is worth it, by `RULE`.

    Args:
        loss: Relative to dense, in percent; NaN if it was not measured.
        noise: Its noise; NaN if it is unknown.
        saved: Bytes of dense over its own; NaN if they were not measured.
        gains: Speed-ups, one for each machine that was timed at its sparsity.

    Example:
        >>> worth(1.0, 0.2, 3.0, [1.4]), worth(1.0, 0.2, 3.0, []), worth(4.0, 0.2, 3.0, [1.4])
        ('yes', 'for memory', 'no')
    """
    if math.isnan(loss):
        return "not measured"
    around = 0.0 if math.isnan(noise) else noise
    if loss - around >= LIMIT:
        return "no"
    if loss + around >= LIMIT or (math.isnan(noise) and loss > 0):
        return "undecided"
    if any(gain >= LEAST_GAIN for gain in gains):
        return "yes"
    if saved >= LEAST_GAIN:
        return "for memory"
    return "not measured" if not gains and math.isnan(saved) else "no"


def _by_sparsity(
    configurations: Sequence[Configuration], times: pd.DataFrame, machines: Sequence[str]
) -> list[AtSparsity]:
    keys = sorted({(each.method, each.sparsity) for each in configurations}, key=lambda key: (key[0] != "blast", key))
    timed = {round(float(sparsity), 6) for sparsity in times["sparsity"] if not pd.isna(sparsity)}
    keys += [("–", sparsity) for sparsity in sorted(timed - {round(sparsity, 6) for _, sparsity in keys})]
    found = []
    for method, sparsity in keys:
        group = [each for each in configurations if (each.method, each.sparsity) == (method, sparsity)]
        sparse = not group or any(each.block != NO_BLOCK for each in group)
        spreads = {machine: _at(times, machine, sparsity) if sparse else None for machine in machines}
        gains = [spread.middle for spread in spreads.values() if spread]
        verdicts = [worth(each.loss, each.noise, each.bytes_saved, gains) for each in group]
        found.append(
            AtSparsity(
                method=method,
                sparsity=sparsity,
                losses=tuple(each.loss for each in group if not math.isnan(each.loss)),
                bytes_saved=_spread([each.bytes_saved for each in group]),
                times=spreads,
                worth=next((v for v in dict.fromkeys(verdicts) if 2 * verdicts.count(v) > len(verdicts)), "undecided")
                if verdicts
                else "not measured",
            )
        )
    return found
