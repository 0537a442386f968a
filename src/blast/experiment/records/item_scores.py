"""The scores of single items of trained points: beside their language metrics, and exported to `results/recorded/`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.evaluation.item_scores import read_item_scores
from blast.experiment.plan.paths import GridFolder
from blast.files import replacing

Record = Mapping[str, Any]


def item_scores_of(folder: GridFolder, record: Record, language: Record | None) -> Path | None:
    """The file with the scores of a point's items; None without one, or if its metrics are of another record."""
    if language is None or language.get("record_digest") != record["record_digest"] or language.get("status") != "ok":
        return None
    file = folder.item_scores(record["point"]["id"])
    return file if file.is_file() else None


def export_item_scores(folder: GridFolder, record: Record, language: Record | None, machine_dir: Path) -> Path | None:
    """Copies the scores of a point's items to `machine_dir/items/<grid>/<point>.npz`.

    Args:
        folder: Folder of the grid.
        record: Of a point of it.
        language: Its language metrics, or None.
        machine_dir: `results/recorded/<hardware>`.

    Returns:
        The file; None for a point without them.

    Raises:
        BlastError: if the file is damaged or belongs to another record.
    """
    file = item_scores_of(folder, record, language)
    if file is None:
        return None
    _, facts = read_item_scores(file)
    if facts.get("record") != record["record_digest"]:
        raise BlastError(
            f"{file}: these scores of items are not those of the record of '{record['point']['id']}'; run "
            "`blast language` for this point again."
        )
    made = machine_dir / "items" / record["point"]["grid"] / f"{record['point']['id']}.npz"
    with replacing(made) as temporary:
        shutil.copyfile(file, temporary)
    return made


def recorded_item_scores(recorded_dir: Path) -> Iterator[tuple[tuple[str, str, str], Path]]:
    """Grid, hardware and id of each point whose items were exported, with the file."""
    for file in sorted(recorded_dir.glob("*/items/*/*.npz")):
        yield (file.parent.name, file.parts[-4], file.name.removesuffix(".npz")), file
