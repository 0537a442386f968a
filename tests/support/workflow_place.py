"""The workflow in a folder of its own, on a small real grid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "profiles", "config", "paper_figures")
# Pictures and tables that are built there: the others take three seconds each, and CI's small run builds all.
VIEWS = ("claims", "accuracy_vs_sparsity", "results_table", "training_curves")
HOT = {"learning_rate": 1e30}


def grid(name: str, **changes) -> dict:
    common = {"architectures": ["vit-nano"], "datasets": ["digits"], "blocks": [16]}
    return {
        "name": name,
        "figures": f"results/{name}/figures",
        "training": {"default": {"steps": 20, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}},
        "points_per_job": {"default": 4},
        "grid": [{**common, "sparsity": [0, 0.9]}, {**common, "sparsity": [0], "variant": "hot", "training": HOT}],
        **changes,
    }


class Place:
    """A folder with the workflow in it and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        # The environment is in the folder, as `make all` makes it.
        (folder / ".venv").symlink_to(sys.prefix)
        self.python = folder / ".venv" / Path(sys.executable).relative_to(sys.prefix)
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.p[dn][fg]", "__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)
        for view in (folder / "paper_figures" / "views").glob("[a-z]*.py"):
            if view.stem not in VIEWS:
                view.unlink()

    def write(self, values: dict) -> Path:
        file = self.folder / "grid.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    def run(self, *words: str, timeout: float = PATIENCE, **environment: str) -> subprocess.CompletedProcess:
        command = [str(self.python), "-m", "snakemake", "--cores", "8", *words, "--configfile", "grid.yaml"]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
        )
