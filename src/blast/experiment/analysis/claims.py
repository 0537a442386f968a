"""Verdicts on the paper's claims: met, not met, undecided, projected, or not run.

A claim is a row of `config/paper_values.csv`. Its `rule` selects a judge from `JUDGES` at the end of this file:

- **Every rule.** A claim that names a model is judged on rows of that model alone. A claim that names a number of GPUs
  is judged on rows from at least that many. Without such rows it is **not run**. Small models on small data therefore
  never decide a claim about a large model.
- **A value with an interval** is **met** if the whole interval reaches the paper's value, **not met** if the whole
  interval misses it, else **undecided**. A value without an interval is undecided.
- **A calculated value** is always **projected**, never met.
- `majority`: the points (model × dataset × sparsity) of the method `blast` of one grid, each by its main metric
  against the best dense model of as many tokens. Levers, teachers and trials that were not chosen do not count.
  **Met** if more than half lie under the limit by more than the noise. **Not met** if at least half lie over it by more
  than the noise. Else undecided. Points that failed, were not run or are at chance count on neither side. The noise is
  the spread over seeds; with one seed, two standard errors of the difference.
- `pretraining`: the speed-up of a whole run, derived from step times on a GPU (`analysis/pretraining.py`). Only
  published architectures count. There is one finding for `swap` and one for `union`. The quantiles of the step times
  give the interval.
  Whole runs whose training was timed give further findings: for each method its fastest run, compared with the dense
  run of as many steps on the same machine, without compile time. One run has no interval, so it is undecided.
- `gpus`: the fewest GPUs that hold the model, dense and sparse, by the rule of `blast.architectures.gpus_needed`, and
  their price an hour. **Projected**: they are computed from the sizes of the model. One finding for each thing served.
  Speed is not part of it.
- Bytes of weights that were not measured are computed with their indices, and are **projected** too. The finding names
  the ratio with the cache of the things served.
- `sparsity`: **met** if some point reaches the sparsity within the rounding to whole blocks (half a percent).
  **Not run** if no point had that target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from blast import architectures
from blast.experiment.analysis import gpu_cost, pretraining
from blast.experiment.analysis.comparison import missing, summarise
from blast.experiment.analysis.gpu_cost import read_gpu_prices
from blast.experiment.analysis.paper_values import PaperValue
from blast.experiment.analysis.ratio import ratios
from blast.experiment.analysis.recipe import main_scores
from blast.experiment.analysis.time_to_loss import TimedRun, dense_of, timed_runs
from blast.experiment.analysis.trials import chosen_trials
from blast.sparsity.config import METHOD_DETAILS

Verdict = Literal["met", "not met", "undecided", "projected", "not run"]

# Largest difference between target and achieved sparsity that rounding to whole blocks makes.
BLOCK_ROUNDING = 0.005
# A claim at sparsity s also counts points up to s + SAME_SPARSITY.
SAME_SPARSITY = 0.02


@dataclass(frozen=True)
class Finding:
    """Our result for one claim.

    Attributes:
        verdict: Whether the claim is met.
        ours: Our value as printed; "–" if there is none.
        setting: What it was measured on, or what is missing.
    """

    verdict: Verdict
    ours: str
    setting: str


def judge(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """Our findings for one value of the paper; several if several grids or methods give one.

    Args:
        value: From `blast.experiment.analysis.paper_values.read_paper_values`.
        table: From `blast.experiment.records.table.load_table`.
    """
    return JUDGES[value.rule](value, table)


def trained(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of trainings. Most rows are of benchmarks, and what compares qualities goes through each row."""
    return table[table["suite"] == "train"]


def compare(low: float, high: float, limit: float, *, at_least: bool) -> Verdict:
    """Compares the interval `[low, high]` of a value with the paper's value.

    Args:
        low: Lower end; NaN if there is no interval.
        high: Upper end; NaN if there is no interval.
        limit: The paper's value.
        at_least: True if the value must be at least `limit` (a speed-up), False if at most (a loss).
    """
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if not at_least:
        low, high, limit = -high, -low, -limit
    if low >= limit:
        return "met"
    return "not met" if high < limit else "undecided"


def majority(losses: list[tuple[float, float]], limit: float, unknown: int = 0) -> Verdict:
    """Verdict on "the majority loses less than `limit`"; "not run" without any loss.

    Args:
        losses: For each point its relative loss and the noise of it. With NaN noise a point is on neither side.
        limit: In the unit of the losses.
        unknown: Number of points without a loss (failed, not run, at chance). They are on neither side.
    """
    if not losses:
        return "not run"
    total = len(losses) + unknown
    under = sum(loss + noise < limit for loss, noise in losses)
    over = sum(loss - noise >= limit for loss, noise in losses)
    if 2 * under > total:
        return "met"
    return "not met" if 2 * over >= total else "undecided"


def _not_run(reason: str) -> Finding:
    return Finding("not run", "–", reason)


def _names(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values if not pd.isna(value)}))


def _noise(row: Any) -> float:
    return row.noise if not math.isnan(row.noise) else 2 * row.relative_error


def _judge_majority(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """One finding for each grid, because grids differ in their settings.

    The recipe of `blast` counts, without a teacher and with as many tokens as most runs; its levers do not.
    """
    table = chosen_trials(trained(table))
    scores = main_scores(table)
    findings = []
    for grid, rows in scores[scores["recipe"] & scores["usual"]].groupby("grid", sort=True):
        pruned = rows[(rows["method"] == "blast") & (rows["sparsity"] <= (value.sparsity or 1))]
        pruned = pruned[pruned["teacher"].isna()]
        known = pruned[pruned["relative"].notna()]
        lost = missing(table[table["grid"] == grid])
        lost = lost[(lost["method"] == "blast") & ~lost["model"].isna() & lost["teacher"].isna()]
        absent = {tuple(row) for row in lost[["model", "dataset", "sparsity", "block"]].itertuples(index=False)}
        absent -= {tuple(row) for row in pruned[["model", "dataset", "sparsity", "block"]].itertuples(index=False)}
        unknown = len(absent) + len(pruned) - len(known)
        losses = [(row.relative, _noise(row)) for row in known.itertuples(index=False)]
        under = sum(loss < value.value for loss, _ in losses)
        highest = known[known["sparsity"] == known["sparsity"].max()]
        at_highest = int((highest["relative"] < value.value).sum())
        ours = f"{under} of {len(losses)} under {value.value:g} %"
        if len(highest):
            ours += f"; at {100 * highest['sparsity'].iloc[0]:g} %: {at_highest} of {len(highest)}"
        if unknown:
            ours += f"; {unknown} more without a loss"
        setting = f"grid {grid}: {_names(rows['model'])} on {_names(rows['dataset'])}, {_names(rows['metric'])}"
        seeds = sorted(set(known["seeds"]))
        if seeds:
            least = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
            setting += f"; {least} seed{'' if seeds[-1] == 1 else 's'} a point, against the best dense model"
        if losses:
            findings.append(Finding(majority(losses, value.value, unknown), ours, setting))
    return findings or [_not_run("no pruned model with its dense run was recorded")]


def _judge_sparsity(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    done = trained(table)
    done = done[(done["status"] == "ok") & (done["method"] == "blast")]
    done = done[done["achieved_sparsity"].notna()]
    if done.empty:
        return [_not_run("no pruned model was recorded")]
    best = done.loc[done["achieved_sparsity"].idxmax()]
    if done["sparsity"].max() < value.value - BLOCK_ROUNDING:
        return [_not_run(f"the highest sparsity that was run is {100 * done['sparsity'].max():g} %")]
    top = done[done["achieved_sparsity"] >= best["achieved_sparsity"] - BLOCK_ROUNDING]
    reached = best["achieved_sparsity"] >= value.value - BLOCK_ROUNDING
    ours = f"{100 * best['achieved_sparsity']:.1f} % of MLP weights"
    setting = f"{_names(top['model'])} on {_names(top['dataset'])}; see the next claim for what it costs"
    return [Finding("met" if reached else "not met", ours, setting)]


def _comparable(value: PaperValue, found: pd.DataFrame) -> pd.DataFrame:
    """Ratios measured in the setting that the claim names."""
    # Other providers (peers, dense, kernels that skip dead hidden blocks) do not count as ours.
    keep = found["provider"].isna() | (found["provider"] == "ours")
    if value.suite:
        keep &= found["suite"].isin(value.suite)
    if value.model:
        keep &= found["model"] == value.model
    if value.sparsity is not None:
        keep &= found["sparsity"] <= value.sparsity + SAME_SPARSITY
    if value.gpus is not None:
        gpus = found["gpus"].astype(float).fillna(found["gpu"].astype(float))
        keep &= found["gpu"].astype(bool) & (gpus >= value.gpus)
    return found[keep]


def _why_not(value: PaperValue, found: pd.DataFrame) -> str:
    """Which rows the claim needs, as a sentence."""
    wanted = [f"rows of {value.model}"] if value.model else ["rows"]
    if value.gpus is not None:
        wanted.append("from a GPU" if value.gpus == 1 else f"from {value.gpus} GPUs")
    reason = f"needs {' '.join(wanted)}"
    if value.gpus is not None and len(found) and not found["gpu"].astype(bool).any():
        reason += "; CPU timings say nothing about it"
    return reason


def _judge_ratio(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    found = ratios(table[table["suite"].isin(value.suite)] if value.suite else table, value.metric)
    fit = _comparable(value, found)
    if fit.empty:
        if value.metric == "weights_bytes" and value.model in gpu_cost.MODELS and value.sparsity:
            return [_computed_memory(value.model, value.sparsity)]
        return [_not_run(_why_not(value, found))]
    best = fit.loc[fit["ratio"].idxmax()]
    tokens = "" if pd.isna(best["tokens"]) else f", {best['tokens']} tokens"
    where = f"{best['model']}, {100 * best['sparsity']:g} %, block {best['block']}{tokens}, {best['hardware']}"
    setting = f"best of {len(fit)} over {best['baseline']}: {where}"
    # Bytes are counted exactly: the interval is the value itself.
    exact = value.metric.endswith("_bytes")
    low, high = (best["ratio"], best["ratio"]) if exact else (best["low"], best["high"])
    verdict = compare(low, high, value.value, at_least=True)
    if not pd.isna(best["projected"]) and best["projected"]:
        verdict = "projected"
    return [Finding(verdict, f"{best['ratio']:.2f}x", setting)]


def _computed_memory(model: str, sparsity: float) -> Finding:
    """The ratio of weights with indices, and in its setting that of weights and cache together."""
    ratios_of = {}
    for serving in gpu_cost.SERVINGS:
        dense, ours = (gpu_cost.computed_memory(model, share, serving) for share in (0.0, sparsity))
        ratios_of[str(serving)] = (dense.weights + dense.kv_cache) / (ours.weights + ours.kv_cache)
    with_cache = " and ".join(f"{ratio:.2f}x ({served})" for served, ratio in ratios_of.items())
    setting = (
        f"computed from the sizes of {model} at {100 * sparsity:g} %, block {gpu_cost.BLOCK}, bfloat16: weights with "
        f"their indices; with keys and values {with_cache}"
    )
    return Finding("projected", f"{dense.weights / ours.weights:.2f}x", setting)


def _judge_gpus(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """One finding for each thing served: GPUs of dense over GPUs of ours, for each memory, and the cost."""
    prices, findings = read_gpu_prices(), []
    for serving in gpu_cost.SERVINGS:
        counts = {
            memory: tuple(
                gpu_cost.fewest_gpus(value.model, share, serving, memory) for share in (0.0, value.sparsity or 0.0)
            )
            for memory in gpu_cost.MEMORIES
        }
        known = {memory: (dense, ours) for memory, (dense, ours) in counts.items() if dense and ours}
        if not known:
            findings.append(_not_run(f"{value.model} fits no number of GPUs ({serving})"))
            continue
        ratios_of = sorted({dense / ours for dense, ours in known.values()})
        ours = f"{ratios_of[0]:g}x" + (f" to {ratios_of[-1]:g}x" if len(ratios_of) > 1 else "") + " GPUs"
        costs = [gpu_cost.lowest_cost(value.model, share, serving, prices) for share in (0.0, value.sparsity or 0.0)]
        if costs[0] and costs[1]:
            ours += f"; {costs[0] / costs[1]:.2g}x cost"
        numbers = ", ".join(f"{memory} GB: {dense} to {less}" for memory, (dense, less) in known.items())
        setting = (
            f"computed from the sizes of {value.model} at {100 * (value.sparsity or 0):g} %, {serving}, bfloat16, by "
            f"the rule of blast.architectures.gpus_needed ({numbers}); cost on the cheapest GPUs of "
            "config/gpu_prices.csv; not run on GPUs"
        )
        findings.append(Finding("projected", ours, setting))
    return findings


def _judge_loss(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    lacking = _not_run(f"needs {value.metric.replace('_', ' ')} of {value.model}")
    if not ((table["metric"] == value.metric) & (table["model"] == value.model)).any():
        return [lacking]
    summary = summarise(table, (value.metric,))
    fit = summary[(summary["model"] == value.model) & (summary["method"] == "blast") & summary["relative"].notna()]
    if value.sparsity is not None:
        fit = fit[(fit["sparsity"] - value.sparsity).abs() < SAME_SPARSITY]
    if fit.empty:
        return [lacking]
    best = fit.loc[fit["relative"].idxmin()]
    noise = _noise(best)
    verdict = compare(best["relative"] - noise, best["relative"] + noise, value.value, at_least=False)
    where = f"{best['model']} on {best['dataset']}, {100 * best['sparsity']:g} %, {best['hardware']}"
    return [Finding(verdict, f"{best['relative']:+.2f} %", where)]


def _judge_pretraining(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """Speed-up of pretraining: derived from step times, then measured on whole runs.

    The derived part has one finding for each growth mode. It names the best architecture, and for each architecture
    the final sparsity that passes the paper's value.
    """
    rows = pretraining.step_rows(table)
    known = {}
    for case in pretraining.cases(rows):
        times = pretraining.step_times(pretraining.of_case(rows, case))
        measured = times.sparse if times and times.spanned else ()
        in_range = [sparsity for sparsity in measured if sparsity <= (value.sparsity or 1) + SAME_SPARSITY]
        if in_range and case[0] in architectures.SHAPES:
            known[case] = times, max(in_range)
    if not known:
        lacking = "needs dense steps of a published architecture and sparse ones at two sparsities, timed on a GPU"
        return [_not_run(lacking), *_whole_runs(value, table)]
    findings = []
    for growth, method in pretraining.GROWTH.items():
        runs = {case: pretraining.whole_run(times, final, growth) for case, (times, final) in known.items()}
        best = max(runs, key=lambda case: runs[case].speed_up)
        model, block, tokens = best
        final = known[best][1]
        low, high = pretraining.interval(pretraining.of_case(rows, best), final, growth)
        passed = {case: pretraining.passed_at(times, growth, value.value) for case, (times, _) in known.items()}
        places = [
            f"{case[0]} (block {case[1]}) {'never' if share is None else f'from {100 * share:g} %'}"
            for case, share in sorted(passed.items(), key=lambda entry: (entry[1] or 1, entry[0]))
        ]
        setting = (
            f"derived from step times, best of {len(runs)}: {model}, {100 * final:g} %, {method} ({growth}), "
            f"block {block}, {tokens} tokens, {rows['hardware'].iloc[0]}; "
            f"{value.value:g}x passed by {', '.join(places)}"
        )
        ours = f"{runs[best].speed_up:.2f}x" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})")
        findings.append(Finding(compare(low, high, value.value, at_least=True), ours, setting))
    return findings + _whole_runs(value, table)


def _whole_runs(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """For each method its fastest timed run, compared with a dense run of as many steps on the same machine."""
    pairs: dict[str, list[tuple[float, TimedRun]]] = {}
    for group in timed_runs(trained(table)):
        for run in group:
            dense = dense_of(run, group)
            in_range = run.point.sparsity <= (value.sparsity or 1) + SAME_SPARSITY
            published = run.point.model in architectures.SHAPES and not run.point.hardware.startswith("cpu")
            finds_masks = run.point.method in METHOD_DETAILS and METHOD_DETAILS[run.point.method].finds_masks
            if finds_masks and dense and dense.steps == run.steps and in_range and published:
                pairs.setdefault(run.point.method, []).append((dense.running[-1] / run.running[-1], run))
    findings = []
    for method, found in sorted(pairs.items(), reverse=True):
        ratio, run = max(found, key=lambda pair: pair[0])
        point = run.point
        setting = (
            f"measured, whole runs of {run.steps} steps, best of {len(found)}: {point.model} on {point.dataset}, "
            f"{100 * point.sparsity:g} %, {method}, block {point.block}, {point.hardware}"
        )
        findings.append(Finding(compare(math.nan, math.nan, value.value, at_least=True), f"{ratio:.2f}x", setting))
    return findings


JUDGES = {
    "majority": _judge_majority,
    "sparsity": _judge_sparsity,
    "ratio": _judge_ratio,
    "loss": _judge_loss,
    "pretraining": _judge_pretraining,
    "gpus": _judge_gpus,
}
