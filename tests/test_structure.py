"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
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


# Rooms of each house from the ground floor up: a module imports from its own room and from those before it.
LIBRARY = [
    "errors",
    "settings",
    "files",
    "untrusted",
    "moved_modules",
    "download",
    "block_sparse",
    "distributed",
    "layers",
    "model",
    "tensor_parallel",
    "checkpoint",
    "sparsity",
    "integrations",
    "training",
    "generation",
    "evaluation",
    "architectures",
    "datasets",
    "benchmark",
    "experiment",
    "__main__",
]
EXPERIMENT = [
    "command_end",
    "columns",
    "plan",
    "records",
    "run",
    "analysis",
    "language",
    "data",
    "gpu_tables",
    "tracking",
    "todo",
    "report",
    "own_model",
    "listing",
    "environment",
    "rerun",
    "cluster_faults",
    "compare",
    "share",
    "reproduce",
    "snakemake_hooks",
    "commands",
    "cli",
]
OPERATORS = ["common", "tables", "cpu", "linear", "mlp_inference", "mlp_training", "register"]


def modules() -> dict[str, Path]:
    """Every module of `blast` and `blast_kernels` by its dotted name."""
    found = {}
    for package, folder, files in (
        ("blast", ROOT / "src" / "blast", SOURCES),
        ("blast_kernels", ROOT / "kernels", KERNELS),
    ):
        for file in files:
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


MODULES = modules()


def imported_modules(module: str) -> set[str]:
    """Modules of ours that a module imports anywhere, lazily or for types alone."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(MODULES[module])}
    return (found & set(MODULES)) - {module, "blast", "blast_kernels"}


def floor(module: str) -> tuple[int, ...]:
    """How high a module stands; kernels are below the library, and each house has floors of its own."""
    package, *rooms = module.split(".")
    if package == "blast_kernels":
        return (0, OPERATORS.index(rooms[0])) if rooms else (0, -1)
    first = LIBRARY.index(rooms[0]) if rooms else len(LIBRARY)
    second = EXPERIMENT.index(rooms[1]) if rooms[:1] == ["experiment"] and len(rooms) > 1 else -1
    return (1, first, second)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards_only(module):
    if module == "blast":
        return  # its names are imported when they are first used
    above = [other for other in imported_modules(module) if floor(other) > floor(module)]
    assert not above


def test_no_module_imports_itself_by_way_of_others():
    """Within a room too: whatever can be taken away because nothing it imports is left is in no circle."""
    left = {module: imported_modules(module) for module in MODULES if module != "blast"}
    while free := {module for module, needs in left.items() if not needs & set(left)}:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize(
    "file", [f for f in SOURCES if "experiment" not in f.parts and f.name != "__main__.py"], ids=name
)
def test_the_library_needs_none_of_the_packages_of_the_workflow(file):
    for imported in imports(file):
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
        "import blast, blast.experiment.run.job, blast.experiment.run.worker, blast.experiment.run.train\n"
        "import blast.experiment.run.benchmark, blast.benchmark.mlp, blast.experiment.records.import_records\n"
        "import blast.benchmark.kernels, blast.model.fuse, blast_kernels.register\n"
        "from blast.experiment.cli import main\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_planning_a_grid_does_not_load_torch():
    code = (
        "import sys, blast\n"
        "from blast.experiment.plan.config import read_config\n"
        "from blast.experiment.plan.grid import expand\n"
        "expand(read_config('config/config.yaml'))\n"
        "loaded = {'torch', 'pandas', 'mlflow', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE, cwd=ROOT)


def test_the_lock_files_name_no_registry_and_agree():
    texts = [(ROOT / name).read_text() for name in ("requirements.lock", "requirements-clusters.lock")]
    assert not any("://" in text for text in texts)
    usual, clusters = (set(re.findall(r"^([\w.-]+==\S+)", text, flags=re.MULTILINE)) for text in texts)
    names = {pin.partition("==")[0] for pin in usual}
    more = {pin.partition("==")[0] for pin in clusters - usual}
    assert not more & names
    # Snakemake imports every plugin at each start.
    assert not any(name.startswith("snakemake-executor-plugin") for name in names)
    assert {"snakemake-executor-plugin-slurm", "snakemake-executor-plugin-kubernetes"} <= more


def test_no_two_test_files_have_one_name():
    """pytest imports them by their name alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
