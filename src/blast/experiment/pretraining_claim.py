"""The claim about pretraining as a whole; the rules are written out in `blast.experiment.claims`."""

from __future__ import annotations

import math

import pandas as pd

from blast import architectures
from blast.experiment import pretraining
from blast.experiment.finding import SAME_SPARSITY, Finding, compare, not_run
from blast.experiment.paper_values import PaperValue
from blast.experiment.time_to_loss import TimedRun, dense_of, timed_runs


def judge_pretraining(value: PaperValue, table: pd.DataFrame) -> list[Finding]:
    """Findings on how much faster pretraining is as a whole: derived from step times, and measured.

    Derived, there is one for each way to grow blocks: the best architecture, and where each passes the paper's value.

    Args:
        value: The paper's.
        table: From `blast.experiment.table.load_table`.
    """
    rows = pretraining.step_rows(table)
    known = {}
    for case in pretraining.cases(rows):
        times = pretraining.step_times(pretraining.of_case(rows, case))
        fit = [
            share
            for share in (times.sparse if times and times.spanned else ())
            if share <= (value.sparsity or 1) + SAME_SPARSITY
        ]
        if fit and case[0] in architectures.SHAPES:
            known[case] = times, max(fit)
    if not known:
        lacking = "needs dense steps of a published architecture and sparse ones at two sparsities, timed on a GPU"
        return [not_run(lacking), *_whole_runs(value, table)]
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
    """A finding for each method: the fastest of its runs that were timed beside a dense one of as many steps."""
    pairs: dict[str, list[tuple[float, TimedRun]]] = {}
    for group in timed_runs(table):
        for run in group:
            dense = dense_of(run, group)
            fits = run.point.sparsity <= (value.sparsity or 1) + SAME_SPARSITY
            published = run.point.model in architectures.SHAPES and not run.point.hardware.startswith("cpu")
            if run.point.method != "dense" and dense and dense.steps == run.steps and fits and published:
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
