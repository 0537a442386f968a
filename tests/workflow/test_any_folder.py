"""The workflow starts in any folder, and takes no path apart: the same jobs as in the checkout, or one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE
from workflow_place import grid

import paper_figures

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
ODD = """it's "a" $HOME #1 é & co"""


def dry_run(snakefile: Path, folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of a dry run that is started in one folder and works in it."""
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile), "-n", "all", *words]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_every_value_in_a_command_is_quoted(file):
    text = file.read_text()
    assert not re.findall(r"^ +(?:script|run|notebook|wrapper):", text, re.MULTILINE), "Snakemake quotes no path there"
    commands = re.findall(r"^(?: +shell:\n +|JOB = |DRAW = )(.*)$", text, re.MULTILINE)
    assert len(commands) >= text.count("shell:")
    for command in commands:
        values = re.findall(r"\{([^{}]+)\}", command.replace("{{", "").replace("}}", ""))
        assert command == "JOB" or values
        assert all(value.endswith(":q") for value in values), command


def test_another_working_folder_has_all_jobs_of_the_checkout(tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "my grid.yaml").write_text(yaml.safe_dump(grid("away") | {"figures": "my figures"}))
    # A file here does not replace a module.
    (folder / "yaml.py").write_text("raise RuntimeError")
    code, said = dry_run(ROOT / "Snakefile", folder.parent, "--directory", ODD, "--configfile", f"{ODD}/my grid.yaml")
    assert code == 0, said
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", said.rpartition("Job stats:")[2], re.MULTILINE))
    assert int(jobs["figure"]) == len(paper_figures.figures())
    assert int(jobs["table"]) == len(paper_figures.tables())
    assert {rule: jobs[rule] for rule in ("fetch", "prepare", "point", "mlflow", "used_config", "verdict")} == {
        "fetch": "1", "prepare": "1", "point": "1", "mlflow": "1", "used_config": "1", "verdict": "1",
    }  # fmt: skip


@pytest.mark.slow
def test_a_checkout_that_cannot_be_read_is_refused_in_one_sentence(tmp_path):
    brace, bare = tmp_path / "a{b}", tmp_path / "bare"
    brace.mkdir()
    shutil.copy(ROOT / "Snakefile", brace)
    shutil.copytree(ROOT / "workflow", bare / "workflow")
    shutil.copy(ROOT / "Snakefile", bare)
    for checkout, sentence in (
        (brace, "takes a brace in this path for a wildcard"),
        (bare, "holds no figures or no t"),
    ):
        code, said = dry_run(checkout / "Snakefile", tmp_path, "--configfile", str(ROOT / "config" / "smoke.yaml"))
        assert code != 0
        assert said.count("blast: ") == 1
        assert sentence in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_grid_runs_whole_from_another_folder_with_odd_names(place, tmp_path):
    # The library that reads lm-eval's documents replaces `$HOME` in their paths.
    names = {"HOME": ODD, "BLAST_CACHE": ODD, "TMPDIR": ODD.replace("$HOME", "")}
    folders = {name: str(tmp_path / f"{name} {odd}") for name, odd in names.items()}
    for folder in folders.values():
        Path(folder).mkdir()
    away = tmp_path / f"away {ODD}"
    values = grid("away") | {"figures": "my figures"}
    values["grid"] = [{"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], "sparsity": [0]}]
    values["data"], values["evaluation"] = {"pystdlib": {"vocab_size": 512}}, {"items": 20}
    values["training"]["default"]["length"] = 64
    file = place.write(values)
    answer = place.run(
        "all", "-s", str(place.folder / "Snakefile"), "--directory", str(away), timeout=PATIENCE, **folders
    )
    assert file.is_file()
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    # Its training is too short to be good, and the verdict says so.
    assert "all 1 points are done; 1 of them is bad" in said
    for name in (*paper_figures.figures(), *paper_figures.tables()):
        if (place.folder / "paper_figures" / "views" / f"{name}.py").is_file():
            assert list((away / "my figures").glob(f"{name}.*")), name
    assert sorted(path.name for path in away.iterdir()) == [".snakemake", "my figures", "results"]
    assert not (place.folder / "results").exists()
