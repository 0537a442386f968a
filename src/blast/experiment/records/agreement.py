"""Exports the comparison of a point with stock lm-eval to `results/recorded/<hardware>/agreement/`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.files import read_json, replacing


def export_agreement(folder: GridFolder, record: Mapping[str, Any], machine_dir: Path) -> Path | None:
    """Copies the comparison to `machine_dir/agreement/<grid>/<point>.json`; None without one of this very record.

    Raises:
        BlastError: if the comparison is damaged.
    """
    point = record["point"]
    file = folder.agreement(point["id"])
    if not file.is_file():
        return None
    found = read_json(file, "comparison with lm-eval", "run `blast agreement` again.", ("record_digest",))
    if found["record_digest"] != record["record_digest"]:
        return None
    made = machine_dir / "agreement" / point["grid"] / f"{point['id']}.json"
    with replacing(made) as temporary:
        shutil.copyfile(file, temporary)
    return made
