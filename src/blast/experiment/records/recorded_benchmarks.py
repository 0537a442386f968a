"""Benchmark records rebuilt from the exported rows in `results/recorded`; tables of a GPU are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blast.experiment.records.rows import Record, Row, read_rows
from blast.files import read_json

ENTRY = ("metric", "provider", "unit", "value", "low", "high", "spread", "n", "tokens", "batch", "dtype", "tied")


def recorded_benchmarks(recorded: Path, suite: str) -> Iterator[Record]:
    """Yields records of one suite, rebuilt from exported rows of status ok.

    Args:
        recorded: `results/recorded`; a missing folder yields nothing.
        suite: Name of the suite.

    Raises:
        BlastError: if a file was altered by hand.
    """
    for file in sorted(Path(recorded).glob("*/*.csv")):
        points: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = {}
        for row in read_rows(file):
            if row["suite"] == suite and row["status"] == "ok" and row["block"]:
                setting = json.loads(row["setting"])
                points.setdefault((setting["point"], row["run"]), []).append((row, setting))
        runs = read_json(file.parent / "runs.json", "list of runs", "restore it from git.") if points else {}
        for (name, run), rows in points.items():
            first, setting = rows[0]
            yield {
                "status": "ok",
                "point": {
                    "id": name,
                    "grid": setting.get("grid"),
                    "architecture": first["model"],
                    "sparsity": first["sparsity"],
                    "block": [int(side) for side in first["block"].split("x")],
                    "benchmark": {"suite": suite},
                },
                "result": {"metrics": [{key: row[key] for key in ENTRY} | {"setting": more} for row, more in rows]},
                "run": {
                    **runs.get(run, {}),
                    "hardware": first["hardware"],
                    "gpu": setting.get("gpu"),
                    "commit": first["commit"],
                    "started": first["date"],
                },
            }
