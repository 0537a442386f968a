"""Shows finished points in MLflow, and takes a server that is out of reach calmly."""

from __future__ import annotations

from collections.abc import Sequence

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.verdict import NOT_IMPORTED
from blast.experiment.tracking.importer import import_records


def show_in_mlflow(folder: GridFolder, ids: Sequence[str]) -> str:
    """Imports points; one line that says what was done.

    A server that cannot be reached is told in that line, which then begins with `NOT_IMPORTED`: the records are
    untouched, and the verdict lets the next run try again.
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
