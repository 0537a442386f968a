"""Exports records as CSV files that are committed: `results/recorded/<hardware>/`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.agreement import export_agreement
from blast.experiment.records.item_scores import export_item_scores
from blast.experiment.records.masks import export_masks
from blast.experiment.records.rows import (
    Record,
    Row,
    describe_run,
    read_grid,
    read_rows,
    record_rows,
    run_id,
    write_rows,
)
from blast.files import read_json, write_json

FILES = ("kernels", "training", "inference", "memory", "energy", "accuracy")
# About so many steps of a curve are kept: enough to draw it, and 40 points stay near a megabyte.
CURVE_STEPS = 40
# Curves that change rarely: the steps beside each change are kept.
STEPWISE = ("sparse_execution", "compile_time")
# A curve of which only the last step is read.
TOTAL = "mask_update_time"


def file_of(row: Row) -> str:
    """Which of `FILES` a row belongs to: by its metric for energy and memory, else by its suite."""
    metric = row["metric"] or ""
    if metric.startswith(("energy", "power")):
        return "energy"
    if metric.endswith("_bytes"):
        return "memory"
    if row["suite"] == "train":
        return "training" if row["step"] is not None else "accuracy"
    return {
        "inference": "inference",
        "decode": "inference",
        "tensor_parallel": "inference",
        "pretraining": "training",
    }.get(row["suite"], "training" if row["suite"].startswith("training_") else "kernels")


def _changes(rows: list[Row], metric: str) -> set[int]:
    """The steps on either side of each change of a curve, and its ends."""
    curve = sorted((row["step"], row["value"]) for row in rows if row["metric"] == metric)
    kept = {curve[0][0], curve[-1][0]} if curve else set()
    for (before, old), (after, new) in itertools.pairwise(curve):
        kept |= {before, after} if old != new else set()
    return kept


def _thin(rows: list[Row]) -> list[Row]:
    """Keeps about `CURVE_STEPS` steps of each curve, with the first and the last; of `STEPWISE` the changes."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        if row["step"] is not None:
            steps.setdefault(row["metric"], []).append(row["step"])
    kept = {metric: _changes(rows, metric) for metric in STEPWISE}
    for metric, all_steps in steps.items():
        if metric in STEPWISE:
            continue
        ordered = sorted(all_steps)
        if metric == TOTAL:
            kept[metric] = {ordered[-1]}
            continue
        stride = -(-len(ordered) // CURVE_STEPS)
        kept[metric] = {*ordered[::stride], ordered[-1]}
    return [row for row in rows if row["step"] is None or row["step"] in kept[row["metric"]]]


def _without_losers(rows: list[Row]) -> list[Row]:
    """Of the plans of a product, those that are picked and the fastest: a sweep has thousands of rows."""
    plans = [row for row in rows if row["suite"] == "kernel_plans" and row["metric"] == "latency"]
    fastest: dict[tuple, Row] = {}
    for row in plans:
        setting = json.loads(row["setting"])
        place = setting.get("point"), setting.get("part"), setting.get("gate"), row["tokens"]
        if row["value"] is not None and (place not in fastest or row["value"] < fastest[place]["value"]):
            fastest[place] = row
    kept = {id(row) for row in fastest.values()}
    kept |= {id(row) for row in plans if {True} & {json.loads(row["setting"]).get(key) for key in ("picked", "rules")}}
    dropped = {id(row) for row in plans} - kept
    return [row for row in rows if id(row) not in dropped]


def _identity(row: Row) -> tuple[str, str]:
    setting = json.loads(row["setting"] or "{}")
    return setting.get("grid", ""), setting.get("point", "")


def _order(row: Row) -> tuple[str, ...]:
    step = f"{row['step'] or 0:09d}"
    tokens = f"{row['tokens'] or 0:09d}"
    return *_identity(row), row["metric"] or "", row["task"] or "", row["provider"] or "", tokens, step, row["setting"]


def _folder(recorded_dir: Path, record: Record) -> Path:
    hardware = record["run"].get("hardware") or ""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", hardware):
        raise BlastError(
            f"the record '{record['point']['id']}' has the hardware '{hardware}', which is no folder name; "
            "run the point again with this version."
        )
    return Path(recorded_dir, hardware)


def _merge(folder: Path, entries: list[tuple[Record, Record | None]]) -> list[Path]:
    """Writes the records of one machine into its folder."""
    old = {name: read_rows(folder / f"{name}.csv") for name in FILES if (folder / f"{name}.csv").is_file()}
    kept = {_identity(row) for rows in old.values() for row in rows if row["status"] == "ok"}
    fresh: dict[tuple[str, str], list[Row]] = {}
    runs: dict[str, Any] = {}
    for record, language in entries:
        identity = (record["point"]["grid"], record["point"]["id"])
        # A failed record does not replace rows that were measured before.
        if record["status"] != "ok" and identity in kept:
            continue
        fresh[identity] = _without_losers(_thin(record_rows(record, language)))
        runs[run_id(record)] = describe_run(record)

    written, used = [], set()
    for name in FILES:
        rows = [row for row in old.get(name, []) if _identity(row) not in fresh]
        rows += [row for rows_of_point in fresh.values() for row in rows_of_point if file_of(row) == name]
        used |= {row["run"] for row in rows}
        if rows or name in old:
            write_rows(folder / f"{name}.csv", sorted(rows, key=_order))
            written.append(folder / f"{name}.csv")
    known = folder / "runs.json"
    if known.is_file():
        runs = read_json(known, "list of runs", "restore it from git.") | runs
    write_json(known, {key: runs[key] for key in sorted(runs) if key in used})
    return [*written, known]


def export(records: Iterable[Record | tuple[Record, Record | None]], recorded_dir: Path) -> list[Path]:
    """Writes records into `recorded_dir/<hardware>/`, replacing older rows of the same points.

    Exporting twice changes nothing, and the order of the records does not matter. Rows of other points stay. A failed
    record does not replace measured rows.

    Args:
        records: Records, or pairs of a record and its language metrics (as `rows.read_grid` yields).
        recorded_dir: `results/recorded`.

    Returns:
        The files written, by machine.

    Raises:
        BlastError: if a file there is damaged, or the hardware of a record cannot name a folder.
    """
    by_folder: dict[Path, list[tuple[Record, Record | None]]] = {}
    for entry in records:
        record, language = entry if isinstance(entry, tuple) else (entry, None)
        by_folder.setdefault(_folder(recorded_dir, record), []).append((record, language))
    return [file for folder in sorted(by_folder) for file in _merge(folder, by_folder[folder])]


def export_grid(grid_dir: Path, recorded_dir: Path) -> list[Path]:
    """Exports every record of a grid with its language metrics (see `export`), masks, scores of items
    and comparisons with stock lm-eval.

    Raises:
        BlastError: if there is no record, one is damaged, or its masks or items are not those of the record.
    """
    entries = list(read_grid(grid_dir))
    if not entries:
        raise BlastError(f"{grid_dir}: there are no records to export; run the grid first.")
    folder = GridFolder(Path(grid_dir))
    beside = []
    for record, language in entries:
        machine_dir = _folder(recorded_dir, record)
        beside.append(export_masks(folder, record, machine_dir))
        beside.append(export_item_scores(folder, record, language, machine_dir))
        beside.append(export_agreement(folder, record, machine_dir))
    return export(entries, recorded_dir) + [file for file in beside if file]
