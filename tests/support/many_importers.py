"""Importers that begin at the same moment, in processes of their own, each with a copy of the records."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_grid import GRID, write_point

from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.store import make_quiet

# A fork has what its parent has imported: that of MLflow takes seconds.
_FORK = multiprocessing.get_context("fork")


def machines(root: Path, count: int, records: int, grid: str = GRID) -> list[GridFolder]:
    """Folders with the same records, one for each importer."""
    first = GridFolder(root / "machine0" / "results" / grid)
    for number in range(records):
        write_point(first, f"p{number:03}", grid=grid)
    folders = [first]
    for number in range(1, count):
        folder = GridFolder(root / f"machine{number}" / "results" / grid)
        shutil.copytree(first.root, folder.root)
        folders.append(folder)
    return folders


def _importer(folder: GridFolder, uri: str | None, begin: Any, patch: Callable[[], None] | None) -> None:
    try:
        begin.wait(300)
        if patch:
            patch()
        code = 1 if import_grid(folder.root, uri=uri).faults else 0
    except BaseException:
        traceback.print_exc()
        code = 2
    # No clean-up of what belongs to the parent, pytest for instance.
    os._exit(code)


def import_at_once(
    folders: list[GridFolder], uri: str | None, patches: dict[int, Callable[[], None]] | None = None
) -> list[int | None]:
    """Imports each folder in a process of its own and returns the exit codes.

    Args:
        folders: One folder for each importer.
        uri: Address of the store.
        patches: What an importer, by its number, does first; it may kill itself later.
    """
    make_quiet()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    begin = _FORK.Barrier(len(folders))
    importers = [
        _FORK.Process(target=_importer, args=(folder, uri, begin, (patches or {}).get(number)))
        for number, folder in enumerate(folders)
    ]
    for importer in importers:
        importer.start()
    for importer in importers:
        importer.join(600)
    return [importer.exitcode for importer in importers]
