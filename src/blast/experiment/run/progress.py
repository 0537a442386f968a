"""One line for each finished point: how long it took, its main number, and what is left."""

from __future__ import annotations

import json
from typing import Any

from blast.experiment.plan.paths import GridFolder

# The metric that is shown for a point: the first of these that it has.
HEADLINES = (("top1", 100, "% top-1"), ("bits_per_byte", 1, " bits a byte"), ("latency", 1, " ms"))


def duration(seconds: float) -> str:
    """`41 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def headline(record: dict[str, Any]) -> str:
    """The main number of a point, or why there is none."""
    if record["status"] != "ok":
        return f"FAILED: {record['cause']}"
    unfinished = record["result"].get("unfinished")
    more = f", UNFINISHED: {unfinished}" if unfinished else ""
    for name, scale, unit in HEADLINES:
        for metric in record["result"].get("metrics", []):
            if metric["metric"] == name and metric["value"] is not None:
                return f"{metric['value'] * scale:.4g}{unit}{more}"
    return f"done{more}"


def progress_line(
    folder: GridFolder, record: dict[str, Any], total: int | None, again: bool = False, at_once: int = 1
) -> str:
    """The line of a finished point.

    Args:
        folder: Folder of the grid; its records are counted as done.
        record: The record of the point.
        total: Points of the whole grid; None if not known.
        again: Whether the record existed before and nothing was run.
        at_once: How many points run at once.
    """
    took = "already done" if again else duration(record["run"]["wall_s"])
    text = f"{record['point']['id']}: {took}, {headline(record)}"
    if total is None:
        return text
    seconds = []
    for file in (folder.root / "records").glob("*.json"):
        try:
            seconds.append(json.loads(file.read_text())["run"]["wall_s"])
        except (OSError, ValueError, KeyError):
            continue
    left = max(0, total - len(seconds))
    if not left:
        return f"{text}; {len(seconds)} of {total} points, none left"
    work = left * sum(seconds) / len(seconds)
    text = f"{text}; {len(seconds)} of {total} points, about {duration(work)} of work left"
    at_once = min(at_once, left)
    return f"{text}, {duration(work / at_once)} with {at_once} at once" if at_once > 1 else text
