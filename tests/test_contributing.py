"""The recipes of CONTRIBUTING.md are followed to the letter, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FENCE = r"```\w+\n(.*?)```"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with every recipe followed, importable through `path/`."""
    folder = tmp_path_factory.mktemp("copy")
    skipped = shutil.ignore_patterns("__pycache__", "*.pdf", "*.png", "*.egg-info")
    for name in ("src", "kernels", "workflow", "paper_figures", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped, symlinks=True)
    (folder / "profiles").symlink_to("workflow/profiles")
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for file, code in re.findall(rf"^`([\w./-]+)`:\n\n{FENCE}", TEXT, re.DOTALL | re.MULTILINE):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        assert not (folder / file).exists(), file
        (folder / file).write_text(code)
    method = re.search(rf"### A method\n.*?{FENCE}", TEXT, re.DOTALL)[1]
    insert(folder / "src/blast/sparsity/config.py", "METHOD_DETAILS: dict[str, Method] = {\n", method)
    registered = re.search(rf"In `kernels/register.py`:\n\n{FENCE}", TEXT, re.DOTALL)[1]
    insert(folder / "kernels/register.py", "from __future__ import annotations\n", registered)
    suite = re.search(rf"In `SUITES` of `src/blast/benchmark/settings.py`:\n\n{FENCE}", TEXT, re.DOTALL)[1]
    insert(folder / "src/blast/benchmark/settings.py", "SUITES: dict[str, type] = {\n", suite)
    path = folder / "path"
    path.mkdir()
    (path / "blast").symlink_to(folder / "src" / "blast")
    (path / "blast_kernels").symlink_to(folder / "kernels")
    return folder


def insert(file: Path, after: str, code: str) -> None:
    text = file.read_text()
    assert text.count(after) == 1, (file, after)
    file.write_text(text.replace(after, after + code))


def run(copy: Path, *command: str, timeout: int = 120) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy / "path"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_grid_of_all_recipes_is_planned(copy):
    said = run(copy, "-m", "blast", "check", "config/tried.yaml")
    assert "4 training points on 2 datasets and 1 benchmark point" in said


@pytest.mark.slow
def test_the_kernel_of_the_recipe_is_its_reference(copy):
    """Through Triton's interpreter, by the kernel itself: on a CPU the operator would take the reference."""
    code = """
import torch
from blast_kernels.block_norms import ops, reference
values = torch.randn(5, 16, 32)
norms = torch.full((5,), float("nan"))
ops._kernel[(5,)](values, norms, 512)
torch.testing.assert_close(norms, reference.block_norms(values))
torch.library.opcheck(torch.ops.blast.block_norms, (values,))
"""
    run(copy, "-c", code)


@pytest.mark.slow
def test_the_grid_of_all_recipes_runs(copy):
    run(copy, "-m", "snakemake", "--cores", "2", "all", "--configfile", "config/tried.yaml", timeout=PATIENCE)
    records = [json.loads(file.read_text()) for file in sorted((copy / "results/tried/records").glob("*.json"))]
    assert len(records) == 5
    assert {record["status"] for record in records} == {"ok"}
    assert (copy / "results/tried/paper_figures/training_time.pdf").stat().st_size > 5000
