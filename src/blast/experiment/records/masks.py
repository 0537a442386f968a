"""Masks of trained points: reading them, and exporting the last ones to `results/recorded/<hardware>/masks/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.sparsity.config import METHOD_DETAILS

Record = Mapping[str, Any]


def masks_of_record(folder: GridFolder, record: Record) -> Path | None:
    """The `masks.safetensors` of a point; None if its record names none or the file is missing."""
    artifact = ((record.get("result") or {}).get("artifacts") or {}).get("masks")
    file = folder.work(record["point"]["id"]) / artifact["path"] if artifact else None
    return file if file and file.is_file() else None


def _finds_masks(method: str) -> bool:
    return method in METHOD_DETAILS and METHOD_DETAILS[method].finds_masks


def export_masks(folder: GridFolder, record: Record, machine_dir: Path) -> Path | None:
    """Writes the last masks of a point to `machine_dir/masks/<grid>/<point>.safetensors`.

    Exporting again gives the same bytes.

    Args:
        folder: Folder of the grid.
        record: Of a point of it.
        machine_dir: `results/recorded/<hardware>`.

    Returns:
        The file; None for a point that failed, has another method, or whose masks are missing.

    Raises:
        BlastError: if the masks do not match the digest in the record, or are damaged.
    """
    point = record["point"]
    file = masks_of_record(folder, record)
    if record["status"] != "ok" or not _finds_masks(point["method"]) or file is None:
        return None
    from blast.benchmark.inputs.mask_file import write_mask_file
    from blast.files import file_digest

    if file_digest(file) != record["result"]["artifacts"]["masks"]["digest"]:
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


# Masks of one matrix: bool `[rows, cols]` over blocks, by step.
History = dict[int, np.ndarray]


def read_masks(file: Path) -> dict[str, History]:
    """Reads masks by matrix and step; tensors are named `step000100/transformer.h.0.mlp.c_fc`.

    Raises:
        BlastError: if the file is damaged or holds other tensors.
    """
    found: dict[str, History] = {}
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BlastError(f"{file}: these masks are damaged; delete them and run the point again.") from error
    for key, mask in tensors.items():
        match = re.fullmatch(r"step(\d+)/(.+)", key)
        if not match or mask.ndim != 2:
            raise BlastError(f"{file}: '{key}' {list(mask.shape)} is no mask called step…/<matrix>; run it again.")
        found.setdefault(match[2], {})[int(match[1])] = mask.astype(bool)
    return {name: dict(sorted(found[name].items())) for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
