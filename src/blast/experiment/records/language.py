"""The metrics that lm-eval computes from the scores of a point: are they those of its record and of this code?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import language_fingerprint
from blast.files import json_digest


def read_made(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file of the workflow; empty if it is missing or damaged, as it is made anew then."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def language_metrics(name: str, folder: GridFolder) -> dict[str, Any]:
    """The metrics of lm-eval of a point; empty if they are missing, damaged or changed by hand."""
    metrics = read_made(folder.language(name))
    written = metrics.get("digest")
    if written is not None and written != language_digest(metrics):
        return {}
    return metrics


def language_digest(metrics: dict[str, Any]) -> str:
    """Digest of the metrics of a point, and of what they were made of."""
    return json_digest({key: value for key, value in metrics.items() if key != "digest"})


def has_language_metrics(point: Point, record_digest: str, folder: GridFolder) -> bool:
    """Whether the metrics of lm-eval of a point are there, whole, of its record and of this code.

    Metrics from before they had a fingerprint count as of this code.

    Args:
        point: A point with tasks.
        record_digest: Digest of its record.
        folder: Folder of its grid.
    """
    metrics = language_metrics(point.id, folder)
    if metrics.get("status") != "ok" or metrics.get("record_digest") != record_digest:
        return False
    if metrics.get("metrics") and "digest" in metrics and not folder.item_scores(point.id).is_file():
        return False
    return metrics.get("fingerprint") in (None, language_fingerprint(point.evaluation["tasks"]))
