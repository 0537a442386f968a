"""Records as long-form rows, one number per row: exported, drawn and compared in this form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.data_versions import short_digest
from blast.experiment.records.point_facts import execution_facts, training_facts
from blast.experiment.records.record import read_language, read_record
from blast.files import canonical_json, json_digest, write_atomically

COLUMNS = (
    "suite", "model", "dataset", "method", "provider", "sparsity", "achieved_sparsity", "block", "tied", "dtype",
    "tokens", "batch", "step", "task", "metric", "unit", "value", "low", "high", "spread", "n", "seed", "status",
    "setting", "run", "commit", "hardware", "date",
)  # fmt: skip
FLOATS = frozenset({"sparsity", "achieved_sparsity", "value", "low", "high"})
INTEGERS = frozenset({"tokens", "batch", "step", "n", "seed"})
BOOLEANS = frozenset({"tied"})
# Training settings that are shown in `setting`; the digest of the point covers the others.
SHOWN_TRAINING = ("steps", "batch", "length", "learning_rate")
# Keys of `setting` that rows of a curve have.
CURVE_SETTING = ("grid", "point", "parent", "execution", "same_but_execution", "side_by_side", "dataset_digest")
# Left out of `describe_run`: values that differ between points of one process, or that name a person's machine.
RUN_LEFT_OUT = frozenset(
    {
        "wall_s", "started", "finished", "host", "hardware", "training_seconds", "scoring", "gpus_held", "command",
        "training_fingerprint", "trained",
    }
)  # fmt: skip

# Tokens a second that a model reads while lm-eval's requests are scored, padding not counted.
SCORING_RATE = "scoring_rate"

Row = dict[str, Any]
Record = Mapping[str, Any]


def describe_run(record: Record) -> dict[str, Any]:
    """Describes where and with what a record was made; the same for all points of one process.

    Args:
        record: A record; its `run` part is read.

    Returns:
        Versions, driver, commit, … and the day it started.
    """
    run = record["run"]
    kept = {key: value for key, value in run.items() if key not in RUN_LEFT_OUT}
    kept["date"] = (run.get("started") or "")[:10] or None
    return kept


def run_id(record: Record) -> str:
    """Key of a record's run in `runs.json`: the same for all points of one process."""
    hardware = record["run"].get("hardware")
    return json_digest([hardware, describe_run(record)]).removeprefix("sha256:")[:12]


def _block(shape: Iterable[int] | None) -> str | None:
    return "x".join(str(side) for side in shape) if shape else None


def _suite(point: Mapping[str, Any]) -> str:
    if point["stage"] == "train":
        return "train"
    return (point.get("benchmark") or {}).get("suite") or point.get("suite") or point["stage"]


def _setting(record: Record) -> dict[str, Any]:
    point = record["point"]
    training = point.get("training") or {}
    dataset = (record.get("result") or {}).get("dataset") or {}
    setting = {"grid": point["grid"], "point": point["id"], "parent": point.get("parent")}
    setting["digest"] = (record.get("point_digest") or "").removeprefix("sha256:")[:12] or None
    setting |= {key: training.get(key) for key in SHOWN_TRAINING} | execution_facts(point) | training_facts(point)
    parameters = (record.get("result") or {}).get("parameters") or {}
    setting |= {"parameters": parameters.get("total"), "prunable": parameters.get("prunable") or None}
    classes = dataset.get("num_classes") or (dataset.get("counts") or {}).get("classes")
    setting |= {"classes": classes, "dataset_digest": short_digest(dataset.get("digest"))}
    if record["run"].get("gpu"):
        setting["gpu"] = record["run"]["gpu"]
    if record["run"].get("side_by_side", 1) > 1:
        setting["side_by_side"] = record["run"]["side_by_side"]
    return {key: value for key, value in setting.items() if value is not None}


def _common(record: Record) -> Row:
    point, run = record["point"], record["run"]
    result = record.get("result") or {}
    commit = run.get("commit")
    return dict.fromkeys(COLUMNS) | {
        "suite": _suite(point),
        "model": point["architecture"],
        "dataset": point.get("dataset"),
        "method": point.get("method"),
        "sparsity": point.get("sparsity"),
        "achieved_sparsity": (result.get("sparsity") or {}).get("achieved"),
        "block": _block(point.get("block")),
        "tied": (point.get("sparsify") or {}).get("tie_gate_up"),
        "dtype": (point.get("benchmark") or point.get("training") or {}).get("dtype"),
        "seed": point.get("seed"),
        "status": record["status"],
        "setting": canonical_json(_setting(record)),
        "run": run_id(record),
        "commit": f"{commit}-dirty" if commit and run.get("dirty") else commit,
        "hardware": run.get("hardware"),
        "date": (run.get("started") or "")[:10] or None,
    }


def _metric_row(common: Row, setting: dict[str, Any], metric: Mapping[str, Any]) -> Row:
    row = dict(common)
    for key in ("metric", "task", "unit", "value", "low", "high", "spread", "n"):
        row[key] = metric.get(key)
    for key in ("provider", "tokens", "batch", "dtype", "tied", "status"):
        row[key] = metric.get(key, common[key])
    extra = dict(metric.get("setting") or {})
    if metric.get("better"):
        extra["better"] = metric["better"]
    row["setting"] = canonical_json(setting | extra)
    return row


def _failure(common: Row, setting: dict[str, Any], cause: str | None, task: str | None = None) -> Row:
    row = common | {"status": "failed", "task": task}
    row["setting"] = canonical_json(setting | {"cause": cause or "no cause was recorded"})
    return row


def _floats(row: Row) -> Row:
    # A count of bytes is an int in a record, and a float when it is read from CSV: make both floats.
    return row | {column: float(row[column]) for column in FLOATS if row[column] is not None}


def _curves(record: Record) -> dict[str, Mapping[str, Any]]:
    curves = dict(record["result"].get("curves") or {})
    # Times are in `run`, because they differ each time and `result` does not. A run beside others takes longer.
    alone = record["run"].get("side_by_side", 1) == 1
    seconds = (record["run"].get("training_seconds") if alone else None) or {}
    for key, name in (("value", "training_time"), ("compiling", "compile_time"), ("updating", "mask_update_time")):
        if key in seconds:
            curves[name] = {"unit": "s", "step": seconds["step"], "value": seconds[key]}
    return curves


def _scoring_rate(record: Record) -> list[dict[str, Any]]:
    """How many tokens a second the model read while lm-eval's requests were scored, as a metric; empty if unknown."""
    took = record["run"].get("scoring")
    if not took or record["run"].get("side_by_side", 1) != 1:
        return []
    value = took["tokens"] / took["seconds"]
    return [{"metric": SCORING_RATE, "unit": "tokens/s", "value": value, "n": took["tokens"], "better": "higher"}]


def record_rows(record: Record, language: Record | None = None) -> list[Row]:
    """Long-form rows of one record.

    Args:
        record: A record as `blast.experiment.records.record.read_record` gives it.
        language: lm-eval's metrics of it, or None; ignored if they were made of another record (their
            `record_digest` differs).

    Returns:
        A row for each metric, then for each step of each curve, with the keys `COLUMNS`. Three curves are times until
        each evaluation: `training_time` (seconds of training alone), `compile_time` (its share for compiling) and
        `mask_update_time` (its share for mask updates); a point that ran beside others has none.
        A failed record is one row with `status` failed, no metric, and the cause in `setting`. Failed language metrics
        add such a row too.
    """
    common, setting = _common(record), _setting(record)
    if record["status"] != "ok":
        return [_floats(_failure(common, setting, record.get("cause")))]
    result = record["result"]
    metrics = [*result.get("metrics", ()), *_scoring_rate(record)]
    rows = [_metric_row(common, setting, metric) for metric in metrics]
    if language is not None and language.get("record_digest") == record["record_digest"]:
        if language.get("status") == "ok":
            rows += [_metric_row(common, setting, metric) for metric in language.get("metrics", ())]
            # Tasks whose evaluation set could not be fetched.
            rows += [_failure(common, setting, cause, task) for task, cause in language.get("left_out", {}).items()]
        else:
            rows.append(_failure(common, setting, language.get("cause"), task="language"))
    # A curve has many rows, so they only name their point; the rows of its metrics have its settings.
    place = {"setting": canonical_json({key: setting[key] for key in CURVE_SETTING if key in setting})}
    for name, curve in _curves(record).items():
        for step, value in zip(curve["step"], curve["value"], strict=True):
            rows.append(common | place | {"metric": name, "unit": curve.get("unit"), "step": step, "value": value})
    return [_floats(row) for row in rows]


def read_grid(grid_dir: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Records of a grid, sorted by id, each with its language metrics or None.

    Args:
        grid_dir: `results/<grid>`; without records it yields nothing.

    Raises:
        BlastError: if a file is half-written or was altered.
    """
    folder = GridFolder(Path(grid_dir))
    for file in sorted(Path(grid_dir, "records").glob("*.json")):
        record = read_record(file)
        beside = folder.language(record["point"]["id"])
        yield record, read_language(beside) if beside.exists() or beside.is_symlink() else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes rows as CSV, atomically, in the order given; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_text(row[column]) for column in COLUMNS] for row in rows)
    write_atomically(Path(file), text.getvalue())


def reader_of(column: str) -> Callable[[str], Any]:
    """What turns the text of a cell into its value; an empty cell is None."""
    if column in FLOATS:
        return float
    if column in INTEGERS:
        return int
    return "true".__eq__ if column in BOOLEANS else str


# Cached, because many rows of a point have the same setting.
@lru_cache(maxsize=1 << 16)
def read_setting(text: str | None) -> Mapping[str, Any]:
    """Parses the `setting` of a row; the result is read-only.

    Raises:
        ValueError: if it is no JSON object.
    """
    setting = json.loads(text or "{}")
    if not isinstance(setting, dict):
        raise ValueError(f"the setting is no object: {setting}")
    return MappingProxyType(setting)


def read_rows(file: Path) -> list[Row]:
    """Reads what `write_rows` wrote.

    Raises:
        BlastError: if columns are missing or unknown, or a value is not a number.
    """
    remedy = "`blast records export` writes this file, do not edit it; restore it from git."
    with Path(file).open(newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            odd = sorted(set(COLUMNS) ^ set(header)) or ["the order"]
            raise BlastError(f"{file}: its columns differ from the expected ones in {', '.join(odd)}; {remedy}")
        rows, readers = [], [(column, reader_of(column)) for column in COLUMNS]
        for values in reader:
            try:
                cells = zip(readers, values, strict=True)
                rows.append({column: read(text) if text else None for (column, read), text in cells})
                read_setting(rows[-1]["setting"])
            except ValueError as error:
                raise BlastError(f"{file}: line {reader.line_num} is damaged ({error}); {remedy}") from error
    return rows
