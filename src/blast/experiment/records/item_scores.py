"""The scores of single items of trained points: windows or images of the test data, and the items of lm-eval's sets.

A point has the first in its work folder and the second beside its language metrics. An export puts both into one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.evaluation.item_scores import read_item_scores, write_item_scores
from blast.experiment.plan.paths import GridFolder
from blast.files import file_digest

Record = Mapping[str, Any]


def item_scores_of(folder: GridFolder, record: Record, language: Record | None) -> list[Path]:
    """The files with the scores of a point's items; language metrics of another record count as none."""
    name, files = record["point"]["id"], []
    artifact = ((record.get("result") or {}).get("artifacts") or {}).get("items")
    if artifact:
        files.append(folder.work(name) / artifact["path"])
    if language and language.get("record_digest") == record["record_digest"] and language.get("status") == "ok":
        files.append(folder.item_scores(name))
    return [file for file in files if file.is_file()]


def export_item_scores(folder: GridFolder, record: Record, language: Record | None, machine_dir: Path) -> Path | None:
    """Writes the scores of a point's items to `machine_dir/items/<grid>/<point>.npz`.

    Args:
        folder: Folder of the grid.
        record: Of a point of it.
        language: Its language metrics, or None.
        machine_dir: `results/recorded/<hardware>`.

    Returns:
        The file; None for a point without items.

    Raises:
        BlastError: if a file is damaged or belongs to another record.
    """
    files = item_scores_of(folder, record, language)
    if not files:
        return None
    name, sets, facts = record["point"]["id"], {}, {"point": record["point"]["id"], "record": record["record_digest"]}
    for file in files:
        found, known = read_item_scores(file)
        if file == folder.item_scores(name):
            same, remedy = known.get("record") == record["record_digest"], "run `blast language` for this point again."
            facts = known | facts
        else:
            same = file_digest(file) == record["result"]["artifacts"]["items"]["digest"]
            remedy = "copy the folder of the run again, or delete them to export without them."
        if not same:
            raise BlastError(f"{file}: these scores of items are not those of the record of '{name}'; {remedy}")
        sets |= found
    made = machine_dir / "items" / record["point"]["grid"] / f"{name}.npz"
    write_item_scores(made, sets, facts)
    return made


def recorded_item_scores(recorded_dir: Path) -> Iterator[tuple[tuple[str, str, str], Path]]:
    """Grid, hardware and id of each point whose items were exported, with the file."""
    for file in sorted(recorded_dir.glob("*/items/*/*.npz")):
        yield (file.parent.name, file.parts[-4], file.name.removesuffix(".npz")), file
