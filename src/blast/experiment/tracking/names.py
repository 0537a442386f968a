"""Names in MLflow for the parts of a record: parameters, metrics, curves, tags. Does not import MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from blast.experiment.tracking.links import artifact_link, run_link

# Keys of a point that are no settings.
_NOT_PARAMETERS = frozenset({"id", "grid", "format"})
# MLflow's table opens with the parents of these runs unfolded, and with all others folded.
NESTED = {"mlflow.runType": "evaluation"}
_PARAMETER_LENGTH = 6000
_TAG_LENGTH = 8000
_QUALIFIERS = ("dtype", "tokens", "batch")


def legal(name: str) -> str:
    """A name that MLflow accepts: word characters, `_`, `-`, `.`, spaces, and `/` between parts."""
    parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/"))
    return "/".join(part for part in parts if part.strip(". "))[:250]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def parameters(point: dict[str, Any]) -> dict[str, str]:
    """The settings of a point, flattened: `sparsity`, `block` as `16x16`, `training.steps`.

    Empty settings (None, an empty list or table) are left out, so a dense run shows no pruning settings.
    """
    flat: dict[str, str] = {}

    def add(prefix: str, settings: dict[str, Any]) -> None:
        for key, value in settings.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                add(f"{name}.", value)
            elif key == "block" and isinstance(value, list | tuple):
                flat[name] = "x".join(map(str, value))
            elif value is not None and value != []:
                flat[legal(name)] = as_text(value)[:_PARAMETER_LENGTH]

    add("", {key: value for key, value in point.items() if key not in _NOT_PARAMETERS})
    return flat


def metric_name(entry: dict[str, Any]) -> str:
    """Name of a measured metric. The part before the `/` is the group in which MLflow draws it.

    Examples: `<task>/<metric>` from lm-eval, `quality/top1`, `memory/weights_bytes`,
    `latency_ms/ours float32 tokens128`, `latency_ms/ours tied skewed masks float32 tokens128`.
    """
    metric, unit = str(entry["metric"]), entry.get("unit")
    if entry.get("task"):
        return legal(f"{entry['task']}/{metric}")
    if entry.get("provider"):
        words = [str(entry["provider"])]
        words += ["tied"] if entry.get("tied") else []
        mask = (entry.get("setting") or {}).get("mask")
        words += [f"{mask} masks"] if mask not in (None, "uniform") else []
        words += [f"{key if key != 'dtype' else ''}{entry[key]}" for key in _QUALIFIERS if entry.get(key) is not None]
        return legal(f"{metric}_{unit}/{' '.join(words)}" if unit else f"{metric}/{' '.join(words)}")
    return legal(f"memory/{metric}" if unit == "bytes" else f"quality/{metric}")


def metrics(entries: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Values by name. The spread of `x` is `x_stderr`, or `x_q20` and `x_q80`, or `x_ci95_low` and `x_ci95_high`.

    Entries with equal names get a number, so that none is lost.
    """
    values: dict[str, float] = {}
    for entry in entries:
        if entry.get("value") is None:
            continue
        name = base = metric_name(entry)
        number = 2
        while name in values:
            name, number = f"{base}_{number}", number + 1
        values[name] = float(entry["value"])
        low, high = entry.get("low"), entry.get("high")
        if low is None or high is None:
            continue
        spread = entry.get("spread")
        if spread == "stderr":
            values[f"{name}_stderr"] = float(f"{(high - low) / 2:.6g}")
        elif spread == "q20-80":
            values |= {f"{name}_q20": low, f"{name}_q80": high}
        else:
            ends = f"{name}_{legal(spread or 'spread')}"
            values |= {f"{ends}_low": low, f"{ends}_high": high}
    return values


def headlines(entries: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The columns of a benchmark: our time, that of the faster dense one, and how many times as fast ours is.

    Times are those of the fewest tokens (`at_tokens`). `speed_up_most` is the best of all numbers of tokens. Our time
    is that with uniform masks of its own for each matrix, if there are several.
    """
    ours: dict[int, float] = {}
    dense: dict[int, float] = {}
    for entry in entries:
        timed = entry.get("metric") in ("latency", "step_time") and entry.get("unit") == "ms"
        if not timed or entry.get("value") is None or entry.get("task"):
            continue
        tokens, value = int(entry.get("tokens") or 0), float(entry["value"])
        if entry.get("provider") == "ours":
            ours.setdefault(tokens, value)
        elif str(entry.get("provider")).startswith("dense"):
            dense[tokens] = min(value, dense.get(tokens, value))
    both = sorted(ours.keys() & dense.keys())
    if not both:
        return {"ours_ms": ours[min(ours)]} if ours else {}
    fewest = both[0]
    found = {"ours_ms": ours[fewest], "dense_ms": dense[fewest], "speed_up": dense[fewest] / ours[fewest]}
    found["speed_up_most"] = max(dense[tokens] / ours[tokens] for tokens in both)
    return found | ({"at_tokens": float(fewest)} if fewest else {})


def final_metrics(result: dict[str, Any]) -> dict[str, float]:
    """All final values of a result: metrics, target and achieved sparsity, numbers of parameters."""
    values = metrics(result.get("metrics", ()))
    sparsity, sizes = result.get("sparsity") or {}, result.get("parameters") or {}
    more = {f"sparsity/{key}": sparsity.get(key) for key in ("target", "achieved")}
    more |= {legal(f"parameters/{key}"): value for key, value in sizes.items()}
    return values | {name: float(value) for name, value in more.items() if value is not None}


def curves(result: dict[str, Any]) -> Iterable[tuple[str, int, float]]:
    """`(name, step, value)` for all curves, with names such as `curves/train_loss`."""
    for name, curve in (result.get("curves") or {}).items():
        for step, value in zip(curve["step"], curve["value"], strict=True):
            if value is not None:
                yield legal(f"curves/{name}"), int(step), float(value)


def times(run: dict[str, Any]) -> Iterable[tuple[str, int, float]]:
    """`(name, step, seconds)`: the training time until each evaluation, without evaluations."""
    seconds = run.get("training_seconds") or {"step": [], "value": []}
    for step, value in zip(seconds["step"], seconds["value"], strict=True):
        yield "curves/training_time", int(step), float(value)


def point_tags(point: dict[str, Any], digest: str) -> dict[str, Any]:
    """Tags of a run that its point alone decides."""
    return {key: point.get(key) for key in ("architecture", "dataset", "method", "stage")} | {
        "point_id": point["id"],
        "point_digest": digest,
        "mlflow.source.type": "LOCAL",
        **NESTED,
    }


def tags(record: dict[str, Any]) -> dict[str, str]:
    """Tags of the run of a record: its identity, its origin and its status."""
    point, run = record["point"], record["run"]
    found = point_tags(point, record["point_digest"])
    found |= {key: run.get(key) for key in ("commit", "dirty", "hardware", "host", "fingerprint")}
    found |= {
        "record_digest": record["record_digest"],
        "status": record["status"],
        "cause": record.get("cause"),
        "log": record.get("log"),
        # Until it is complete.
        "superseded": True,
        "mlflow.source.name": run.get("command"),
        "mlflow.source.git.commit": run.get("commit"),
    }
    return texts(found)


def texts(found: dict[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them; None is left out."""
    return {key: as_text(value)[:_TAG_LENGTH] for key, value in found.items() if value is not None}


def note(record: dict[str, Any], experiment: str, run: str, parent: str | None, files: Iterable[str]) -> str:
    """The description of a run, in Markdown: what it is, and links to its record, its log and the figures.

    Args:
        record: The record.
        experiment: Id of the experiment.
        run: Id of the run.
        parent: Id of the run of its grid.
        files: The files that the run has, relative to its artifacts.
    """
    point, there = record["point"], set(files)
    sparse = f", {point['method']} at {100 * point['sparsity']:g} %" if point.get("sparsity") else ""
    where = f" on {point['dataset']}" if point.get("dataset") else ""
    parts = [f"Failed: {record['cause']}", ""] if record.get("cause") else []
    parts += [f"{point['architecture']}{where}{sparse}, seed {point.get('seed')}", ""]
    shown = {"record.json": "record", "point.json": "settings", "log.txt": "log", "rows.csv": "rows",
             "masks/over_time.png": "masks", "model/MLmodel": "model"}  # fmt: skip
    links = [artifact_link(text, run, name) for name, text in shown.items() if name in there]
    if parent:
        links += [run_link("figures and tables of the grid", experiment, parent, "artifacts")]
    parts += [" · ".join(links), "", f"Record: `results/{point['grid']}/records/{point['id']}.json`"]
    if record["run"].get("command"):
        parts += ["", f"Again: `{record['run']['command']}`"]
    return "\n".join(parts)[:5000]
