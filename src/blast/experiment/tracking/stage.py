"""The stage `mlflow`: imports finished points into MLflow. An unreachable server is no failure of the stage."""

from __future__ import annotations

from collections.abc import Sequence

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.verdict import NOT_IMPORTED
from blast.experiment.tracking.importer import import_records


def import_into_mlflow(folder: GridFolder, ids: Sequence[str]) -> str:
    """Imports points and returns a line that says what was done.

    If the import failed, for instance because the server is unreachable, the line begins with `NOT_IMPORTED`. The
    records are unchanged, and the verdict makes the next run try again.
    """
    try:
        summary = import_records(
            [folder.record(name) for name in ids], [folder.language(name) for name in ids], folder.root / "points"
        )
    except BlastError as error:
        return f"{NOT_IMPORTED}: {error}"
    if summary.faults:
        return f"{NOT_IMPORTED}: {summary.faults[0]}"
    return summary.line()
