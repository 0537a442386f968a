"""The main results: what each architecture, dataset, method and sparsity loses against the best dense model."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.evaluation.item_scores import HELD_OUT
from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.paired import ACCURACY, BITS, POOLED, judge
from blast.experiment.analysis.recipe import STUDY, main_scores, variant_of
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.analysis.verdicts import verdicts
from blast.experiment.plan.grid import SMALL_DENSE
from blast.experiment.plan.rerun import rerun_of_grid
from paper_figures.views import _style as style
from paper_figures.views._labels import model_name, small_dense_name
from paper_figures.views._write import RERUN

TITLE = "Main results"
CATEGORY = "Quality"
SUITES = ("train",)
# From the comparison item by item, by grid, machine, configuration, measure and set.
Paired = dict[tuple, Any]
COLUMNS = (
    "grid", "hardware", "architecture", "dataset", "start", "trained", "metric", "unit", "method", "variant", "teacher",
    "sparsity", "block", "ffn", "mlp_share", "model_share", "learning_rate", "trials", "chosen_by", "seeds", "value",
    "lowest", "highest", "standard_error", "relative_loss_percent", "low", "high", "relative_perplexity_percent",
    "above_taught_dense_percent", "above_small_dense_percent", "verdict", "accuracy_verdict",
    "accuracy_loss_percent", "accuracy_low", "accuracy_high", "margin_kept", "note", RERUN,
)  # fmt: skip
KEY = (
    "grid", "hardware", "architecture", "dataset", "start", "trained", "metric", "method", "variant", "teacher",
    "sparsity", "block", "ffn", "learning_rate", "note",
)  # fmt: skip
SHOWN_KEY = ("grid", "model", "data", "trained on", "method", "sparsity", "block", "metric", "note")
ORDER = {name: place for place, name in enumerate(["dense", SMALL_DENSE, *style.METHODS])}
PLACE = [*STUDY, "metric"]


def _judged(row: Any, paired: Paired) -> dict[str, Any]:
    """Verdicts on the loss and on the accuracy pooled over sets: item by item where the items were kept."""
    if row.method == "dense" and not isinstance(row.teacher, str):
        return {}
    place = row.grid, row.hardware, row.config
    # The dataset's own held-out data are a set without a task.
    task = HELD_OUT if pd.isna(row.task) else row.task
    text, accuracy = paired.get((*place, BITS, task)), paired.get((*place, ACCURACY, POOLED))
    low, high = (text.low, text.high) if text else (row.low, row.high)
    verdict = text.verdict if text else None
    if not text and not math.isnan(low + high):
        verdict = judge(low, high, [row.relative])
    found = {"low": low, "high": high, "verdict": verdict}
    if accuracy:
        found |= {"accuracy_verdict": accuracy.verdict, "accuracy_loss_percent": accuracy.relative,
                  "accuracy_low": accuracy.low, "accuracy_high": accuracy.high,
                  "margin_kept": accuracy.kept}  # fmt: skip
    return found


def _note(row: Any) -> str:
    notes = []
    if row.at_chance:
        notes.append("at chance")
    elif row.method != "dense" and math.isnan(row.relative):
        notes.append("dense at chance" if not math.isnan(row.dense) else "dense not run")
    if row.within_noise is True:
        notes.append("within noise")
    if row.seeds == 1 and row.method != "dense":
        notes.append("one seed")
    return ", ".join(notes)


def _best(rows: pd.DataFrame) -> Any:
    """The row with the best score; None without rows."""
    if rows.empty:
        return None
    higher = bool(rows["higher"].iloc[0])
    return rows.loc[rows["value"].idxmax() if higher else rows["value"].idxmin()]


def _above(row: Any, other: Any) -> float:
    """How many percent a score is worse than another one; NaN without it."""
    if other is None or other["config"] == row.config:
        return math.nan
    sign = -1 if row.higher else 1
    return 100 * sign * (row.value - other["value"]) / abs(other["value"])


def _lines(study: pd.DataFrame, paired: Paired) -> list[dict[str, Any]]:
    """The rows of models that are compared with each other."""
    taught_dense = _best(study[(study["method"] == "dense") & study["teacher"].notna()])
    small = study[study["method"] == SMALL_DENSE]
    lines = []
    for row in study.itertuples(index=False):
        pruned = row.method not in ("dense", SMALL_DENSE)
        smaller = _best(small[small["sparsity"] == row.sparsity]) if pruned else None
        lines.append({
            "grid": row.grid, "hardware": row.hardware, "architecture": row.model, "dataset": row.dataset,
            "start": row.start, "trained": row.trained, "metric": row.metric, "unit": row.unit, "method": row.method,
            "variant": row.variant, "teacher": row.teacher, "sparsity": row.sparsity, "block": row.block,
            "ffn": row.ffn, "mlp_share": row.achieved_sparsity if row.sparsity else 0.0,
            "model_share": row.model_share, "learning_rate": row.learning_rate, "trials": row.trials,
            "chosen_by": row.chosen_by, "seeds": row.seeds, "value": row.value, "lowest": row.lowest,
            "highest": row.highest, "standard_error": row.error, "relative_loss_percent": row.relative,
            "relative_perplexity_percent": row.relative_perplexity,
            "above_taught_dense_percent": _above(row, taught_dense) if isinstance(row.teacher, str) else math.nan,
            "above_small_dense_percent": _above(row, smaller), "note": _note(row),
            RERUN: rerun_of_grid(row.grid, row.points), **_judged(row, paired),
        })  # fmt: skip
    return lines


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration; points that failed or were not run have a note instead of a value."""
    table = chosen_trials(table)
    paired = {(row.grid, row.hardware, row.config, row.measure, row.task): row for row in verdicts(table).itertuples()}
    studies = main_scores(table).groupby(PLACE, dropna=False, sort=False)
    lines = [line for _, study in studies for line in _lines(study, paired)]
    lines += [
        {
            "grid": row.grid, "hardware": row.hardware, "architecture": row.model, "dataset": row.dataset,
            "start": row.start, "trained": row.trained, "method": row.method, "variant": variant_of(row.point),
            "teacher": row.teacher,
            "sparsity": row.sparsity, "block": row.block, "ffn": row.ffn, "learning_rate": row.learning_rate,
            "note": f"seed {row.seed} {row.status}" + (f": {row.cause}" if row.status == "failed" else ""),
            RERUN: rerun_of_grid(row.grid, [row.point]),
        }
        for row in missing(table[table["suite"] == "train"]).itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"note": "not run"}]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame["place"] = frame["method"].map(ORDER).fillna(len(ORDER))
    frame["taught"] = frame["teacher"].notna()
    order = ["grid", "architecture", "dataset", "start", "trained", "sparsity", "place", "taught", "variant", "block"]
    frame = frame.sort_values(order, kind="stable", na_position="last", ignore_index=True)
    frame = frame.drop(columns=["place", "taught"])
    return frame.astype({"seeds": "Int64", "trials": "Int64", "ffn": "Int64", "trained": "Int64"})


def remarks(frame: pd.DataFrame) -> list[str]:
    """What has to be said on top of the table: where a small dense model is better than every pruned one."""
    found = []
    known = frame[frame["value"].notna() & frame["teacher"].isna()]
    keys = ["grid", "hardware", "architecture", "dataset", "start", "trained", "metric", "sparsity"]
    for _, place in known.groupby(keys, dropna=False, sort=False):
        small = place[place["method"] == SMALL_DENSE]
        pruned = place[~place["method"].isin(["dense", SMALL_DENSE])]
        beaten = pruned[pruned["above_small_dense_percent"] > 0]
        if small.empty or pruned.empty or len(beaten) < len(pruned):
            continue
        least = pruned.loc[pruned["above_small_dense_percent"].idxmin()]
        best = small.loc[(small["relative_loss_percent"]).idxmin()]
        factor = style.in_percent(best["metric"])
        found.append(
            f"{style.model_label(best['architecture'])} on {style.dataset_label(best['dataset'])} at "
            f"{100 * best['sparsity']:g} %: the small dense model ({small_dense_name(best)}) is better than every "
            f"pruned model; the best of these, {style.method_label(least['method'])}, is "
            f"{least['above_small_dense_percent']:.2f} % behind ({factor * least['value']:.4g} against "
            f"{factor * best['value']:.4g} {style.metric_label(best['metric'])}, "
            f"{_overlap(least, best)})."
        )
    return found


def _overlap(first: Any, second: Any) -> str:
    if first["seeds"] < 2 and second["seeds"] < 2:
        return "one seed each"
    apart = first["lowest"] > second["highest"] or first["highest"] < second["lowest"]
    return "outside the spread of the seeds" if apart else "within the spread of the seeds"


def _trained(row: Any) -> str:
    start = "" if row["start"] == "scratch" or pd.isna(row["start"]) else f", {row['start']}"
    unit = "images" if row["metric"] == "top1" else "tokens"
    return f"{row['trained'] / 1e6:.3g} M {unit}{start}" if not pd.isna(row["trained"]) else start.removeprefix(", ")


def _percent(value: float, digits: int = 1, sign: bool = False) -> str:
    return "" if pd.isna(value) else f"{value:{'+' if sign else ''}.{digits}f} %"


def _pooled(row: Any) -> str:
    """Verdict on the accuracy over all sets, the loss, and what is kept of dense's margin above chance."""
    if pd.isna(row["accuracy_loss_percent"]):
        return ""
    verdict = row["accuracy_verdict"] if isinstance(row["accuracy_verdict"], str) else "no verdict"
    kept = "" if pd.isna(row["margin_kept"]) else f", {100 * row['margin_kept']:.0f} % of the margin kept"
    return f"{verdict} ({row['accuracy_loss_percent']:+.2f} %{kept})"


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    lines = []
    for _, row in frame.iterrows():
        factor = style.in_percent(row["metric"]) if isinstance(row["metric"], str) else 1
        digits = 2 if factor == 100 else 4
        known = not pd.isna(row["value"])
        spread = f"{factor * row['lowest']:.{digits}f} to {factor * row['highest']:.{digits}f}"
        rate = "" if pd.isna(row["learning_rate"]) else f"{row['learning_rate']:.2g}"
        interval = "" if pd.isna(row["low"]) else f" ({row['low']:+.2f} to {row['high']:+.2f})"
        lines.append({
            "grid": row["grid"] if isinstance(row["grid"], str) else "",
            "model": style.model_label(row["architecture"]) if isinstance(row["architecture"], str) else "–",
            "data": style.dataset_label(row["dataset"]),
            "trained on": _trained(row),
            "method": model_name(row) if isinstance(row["method"], str) else "",
            "sparsity": "" if pd.isna(row["sparsity"]) else f"{100 * row['sparsity']:g} %",
            "MLP weights gone": _percent(100 * row["mlp_share"]),
            "all weights gone": _percent(100 * row["model_share"]),
            "block": str(row["block"]).replace("x", " × ") if isinstance(row["block"], str) else "",
            "learning rate": rate + ("" if pd.isna(row["trials"]) else f" (of {row['trials']})"),
            "metric": style.metric_label(row["metric"]) if isinstance(row["metric"], str) else "–",
            "value": f"{factor * row['value']:.{digits}f}" if known else "–",
            "seeds": "" if not known else "1" if row["seeds"] == 1 else f"{row['seeds']}: {spread}",
            "relative loss": _percent(row["relative_loss_percent"], 2, True) + interval,
            "relative perplexity": _percent(row["relative_perplexity_percent"], 1, True),
            "above taught dense": _percent(row["above_taught_dense_percent"], 2, True),
            "above small dense": _percent(row["above_small_dense_percent"], 2, True),
            "verdict": row["verdict"] if isinstance(row["verdict"], str) else "",
            "accuracy, pooled": _pooled(row),
            "note": row["note"],
        })  # fmt: skip
    return pd.DataFrame(lines)
