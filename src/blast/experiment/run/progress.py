"""One line for each finished point: how long it took, its main number, and what is left."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.bad_points import bad_sentences

# The metric that is shown for a point: the first of these that it has.
HEADLINES = (("top1", 100, "% top-1"), ("bits_per_byte", 1, " bits a byte"), ("latency", 1, " ms"))

# Records that are read for the time that is left, at each point that is finished.
READ = 200


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
    record: dict[str, Any], seconds: Sequence[float], total: int | None, again: bool = False, at_once: int = 1
) -> str:
    """The line of a finished point.

    Args:
        record: The record of the point.
        seconds: Durations of all points that are done, this one included.
        total: How many points there are to do in all; None if not known.
        again: Whether the record existed before and nothing was run.
        at_once: How many points run at once.
    """
    took = "already done" if again else duration(record["run"]["wall_s"])
    text = f"{record['point']['id']}: {took}, {headline(record)}"
    if total is None:
        return text
    left = max(0, total - len(seconds))
    if not left:
        return f"{text}; {len(seconds)} of {total} points, none left"
    work = left * sum(seconds) / len(seconds)
    text = f"{text}; {len(seconds)} of {total} points, about {duration(work)} of work left"
    at_once = min(at_once, left)
    return f"{text}, {duration(work / at_once)} with {at_once} at once" if at_once > 1 else text


class Progress:
    """Prints the line of each point that a job finishes.

    Args:
        folder: Folder of the grid.
        points: How many points the job has.
        total: Points of the whole grid: all records in its folder are counted. None counts the points of the job.
        at_once: How many points run at once.
    """

    def __init__(self, folder: GridFolder, points: int, total: int | None, at_once: int) -> None:
        self._folder, self._points, self._total, self._at_once = folder, points, total, at_once
        self._done: list[float] = []

    def tell(self, record: dict[str, Any], again: bool = False) -> None:
        """Prints the line of a point, see `progress_line`, and a line for everything that is bad about it."""
        self._done.append(record["run"]["wall_s"])
        if self._total is not None:
            seconds, total = _seconds_of_grid(self._folder), self._total
        else:
            # Of a single point there is nothing to tell.
            seconds, total = self._done, self._points if self._points > 1 else None
        print(progress_line(record, seconds, total, again, self._at_once), flush=True)
        for said in bad_sentences(record, self._folder):
            print(f"BAD point {record['point']['id']}: {said}", flush=True)


def _seconds_of_grid(folder: GridFolder) -> list[float]:
    """Durations of all points that have a record; of many, those of some, repeated for the others."""
    files = sorted((folder.root / "records").glob("*.json"))
    read = []
    for file in files[:: math.ceil(len(files) / READ) or 1]:
        try:
            read.append(json.loads(file.read_text())["run"]["wall_s"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return list(itertools.islice(itertools.cycle(read), len(files)))
