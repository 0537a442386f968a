"""The last masks of trained points as small files of indices, beside the rows in `results/recorded/<hardware>/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.layout import GridFolder

# Methods whose masks training finds; those of the others are random, or of a dense model.
METHODS = ("blast", "rigl_swap")

Record = Mapping[str, Any]


def masks_of_record(folder: GridFolder, record: Record) -> Path | None:
    """The `masks.safetensors` of a point, as far as its record names one and it is here."""
    artifact = ((record.get("result") or {}).get("artifacts") or {}).get("masks")
    file = folder.work(record["point"]["id"]) / artifact["path"] if artifact else None
    return file if file and file.is_file() else None


def export_masks(folder: GridFolder, record: Record, machine_dir: Path) -> Path | None:
    """Writes the last masks of a point to `machine_dir/masks/<grid>/<point>.safetensors`.

    Exporting again gives the same bytes.

    Args:
        folder: Folder of the grid.
        record: Of a point of it.
        machine_dir: `results/recorded/<hardware>`.

    Returns:
        The file; None for a point that failed, is of another method, or whose masks are not here.

    Raises:
        BlastError: if the masks are not those that the record names, or damaged.
    """
    point = record["point"]
    file = masks_of_record(folder, record)
    if record["status"] != "ok" or point["method"] not in METHODS or file is None:
        return None
    from blast.benchmark.mask_file import digest_of, write_mask_file
    from blast.experiment.mask_pictures import read_masks

    if digest_of(file) != record["result"]["artifacts"]["masks"]["digest"]:
        raise BlastError(
            f"{file}: these masks are not those that the record of '{point['id']}' names; copy the folder of the run "
            "again, or delete them to export the record alone."
        )
    histories = read_masks(file)
    step = max(max(history) for history in histories.values())
    facts = {
        "grid": point["grid"],
        "point": point["id"],
        "model": point["architecture"],
        "dataset": point["dataset"],
        "method": point["method"],
        "sparsity": point["sparsity"],
        "block": list(point["block"]),
        "seed": point["seed"],
        "step": step,
        "record": record["record_digest"],
        "date": record["run"].get("finished"),
    }
    made = machine_dir / "masks" / point["grid"] / f"{point['id']}.safetensors"
    write_mask_file(made, {name: history[max(history)] for name, history in histories.items()}, facts)
    return made
