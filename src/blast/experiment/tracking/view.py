"""The columns of MLflow's run table: settings that distinguish points, and their main results.

The format is that of MLflow's "Save view", an experiment tag (as of MLflow 3.17). Versions that do not know it show
their own columns.
"""

from __future__ import annotations

import json
import time

VIEW = "blast"
# End of the description of each experiment of the suite.
DESCRIPTION = "of the BLaST suite: one run for each point."

# Columns in order, with their widths in pixels.
_COLUMNS = {
    "params.`architecture`": 105,
    "params.`dataset`": 110,
    "params.`method`": 85,
    "params.`sparsity`": 80,
    "metrics.`quality/bits_per_byte`": 165,
    "metrics.`quality/top1`": 105,
    "metrics.`sparsity/achieved`": 135,
    "metrics.`memory/weights_bytes`": 165,
    "params.`block`": 65,
    "params.`seed`": 55,
    "tags.`cause`": 160,
    "tags.`hardware`": 160,
}


def experiment_tags(grid: str) -> dict[str, str]:
    """Tags of the experiment of a grid: its kind, a description, and the view `Points`."""
    state = {
        "searchFilter": "tags.superseded = 'false'",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }
    now = int(time.time() * 1000)
    view = {"name": "Points", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Grid '{grid}' {DESCRIPTION}",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }
