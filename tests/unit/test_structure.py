"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "blast").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
EXPERIMENT_ONLY = {"snakemake", "mlflow", "lm_eval", "datasets", "pydantic", "pandas", "seaborn", "matplotlib", "gguf"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize(
    "file", [f for f in SOURCES if "experiment" not in f.parts and f.name != "__main__.py"], ids=name
)
def test_the_library_knows_nothing_of_the_experiment_around_it(file):
    for imported in imports(file):
        assert not imported.startswith("blast.experiment"), imported
        assert imported.split(".")[0] not in EXPERIMENT_ONLY, imported


@pytest.mark.parametrize("file", KERNELS, ids=name)
def test_kernels_know_nothing_of_the_library(file):
    assert not [imported for imported in imports(file) if imported.split(".")[0] in {"blast"} | EXPERIMENT_ONLY]


def test_no_module_imports_the_workflow():
    for file in SOURCES + KERNELS:
        assert not [
            imported for imported in imports(file) if imported.split(".")[0] in {"workflow", "paper_figures"}
        ], file


def test_the_package_list_is_the_folders():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        "blast" + ".".join(["", *f.relative_to(ROOT / "src" / "blast").parts])
        for f in (ROOT / "src" / "blast").rglob("*")
        if f.is_dir()
    }
    folders = {folder for folder in folders if "__pycache__" not in folder} | {"blast", "blast_kernels"}
    for folder in (ROOT / "kernels").rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__":
            folders.add("blast_kernels." + ".".join(folder.relative_to(ROOT / "kernels").parts))
    assert listed == folders


def test_the_half_that_runs_on_a_gpu_machine_needs_none_of_the_workflow_packages():
    block = "import sys\nfor name in {names!r}: sys.modules[name] = None\n".format(
        names=sorted(EXPERIMENT_ONLY | {"sklearn", "yaml"})
    )
    code = block + (
        "import blast, blast.experiment.job, blast.experiment.worker, blast.experiment.train_point\n"
        "import blast.experiment.benchmark_point, blast.benchmark.mlp, blast.experiment.take_in, blast_kernels.ops\n"
        "import blast.benchmark.kernels, blast.layers.fuse\n"
        "from blast.experiment.cli import main\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_planning_a_grid_does_not_load_torch():
    code = (
        "import sys, blast\n"
        "from blast.experiment.config import read_config\n"
        "from blast.experiment.grid import expand\n"
        "expand(read_config('config/config.yaml'))\n"
        "loaded = {'torch', 'pandas', 'mlflow', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_files_stay_small_enough_to_read_in_one_sitting():
    files = [*SOURCES, *KERNELS, *(ROOT / "workflow").rglob("*.smk"), *(ROOT / "paper_figures").glob("*.py")]
    files += (ROOT / "tests").rglob("*.py")
    long = {name(file): lines for file in files if (lines := len(file.read_text().splitlines())) > 300}
    assert not long


def test_the_lock_file_names_no_registry():
    assert "://" not in (ROOT / "requirements.lock").read_text()
