"""The columns of MLflow's run table: settings that distinguish points, and their main results.

The format is that of MLflow's "Save view", an experiment tag (as of MLflow 3.17). Versions that do not know it show
their own columns.
"""

from __future__ import annotations

import json
import time
from typing import Any

VIEW = "blast"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# End of the description of each experiment of the suite.
DESCRIPTION = "of the BLaST suite: one run for each point."

# By stage, the columns in order, with their widths in pixels: the whole name fits.
_COLUMNS = {
    "train": {
        "params.`architecture`": 115,
        "params.`dataset`": 95,
        "params.`method`": 85,
        "params.`sparsity`": 80,
        "params.`block`": 70,
        "params.`seed`": 60,
        "metrics.`quality/bits_per_byte`": 180,
        "metrics.`quality/top1`": 115,
        "metrics.`sparsity/achieved`": 150,
        "metrics.`memory/weights_bytes`": 190,
        "tags.`cause`": 160,
        "tags.`hardware`": 160,
    },
    "benchmark": {
        "params.`benchmark.suite`": 140,
        "params.`architecture`": 120,
        "params.`sparsity`": 80,
        "params.`block`": 70,
        "metrics.`ours_ms`": 95,
        "metrics.`dense_ms`": 95,
        "metrics.`speed_up`": 95,
        "metrics.`speed_up_most`": 125,
        "metrics.`at_tokens`": 100,
        "tags.`cause`": 160,
        "tags.`hardware`": 160,
    },
}
# The columns that every run has.
_FIRST = {"attributes.`Run Name`": 380, "attributes.`Created`": 130}


def view_of(stage: str) -> str:
    """The view `Points`, as MLflow stores it.

    Args:
        stage: Of the points, `train` or `benchmark`.
    """
    columns = _COLUMNS["benchmark" if stage == "benchmark" else "train"]
    state: dict[str, Any] = {
        "searchFilter": "tags.superseded = 'false'",
        "selectedColumns": list(columns),
        "columnOrder": [*_FIRST, *columns],
        "columnWidths": {**_FIRST, **columns},
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": "Points", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def experiment_tags(grid: str, stage: str = "train") -> dict[str, str]:
    """Tags of an experiment of a grid: its kind, a description, and the view `Points`."""
    what = f"Benchmarks of the grid '{grid}'" if stage == "benchmark" else f"Grid '{grid}'"
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"{what} {DESCRIPTION}",
        VIEW_TAG: view_of(stage),
    }
