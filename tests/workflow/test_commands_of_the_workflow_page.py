"""The commands of the part "Plan, run, watch" of docs/workflow.md do what the page says, on a finished grid."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import finished_grid as finished
import pytest
import yaml

from blast.experiment.cli import main, parser
from blast.experiment.commands import run
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder

ROOT = Path(__file__).resolve().parents[2]
PART = (ROOT / "docs" / "workflow.md").read_text().partition("## Plan, run, watch")[2].partition("\n## ")[0]
BLOCK = re.findall(r"```sh\n(.*?)```", PART, re.DOTALL)[0]
COMMANDS = [line.partition(" # ")[0].strip() for line in BLOCK.splitlines() if line.startswith("blast ")]
IN_WORDS = re.findall(r"`blast ([a-z]+ [^`…]+)`", PART)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the configs of the checkout, and the smoke grid as a run leaves it, with invented numbers."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "config", root / "config")
    values = yaml.safe_load((root / "config" / "smoke.yaml").read_text())
    folder = GridFolder(root / "results" / "smoke")
    (root / "views").mkdir()
    finished.write_finished(values, folder, root / "views", root / "drawn", root / "recorded")
    return root


@pytest.fixture
def here(place, monkeypatch) -> list[list[str]]:
    """Works in that folder; what Snakemake would be started with is kept instead."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.STORE)
    started: list[list[str]] = []
    monkeypatch.setattr(run, "_watched", lambda command, *args, **more: started.append(list(command)) or 0)
    return started


def test_the_part_shows_each_verb_of_a_grid():
    assert {command.split()[1] for command in COMMANDS} == {"plan", "run", "status", "show", "verify"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(here, command, capsys):
    words = shlex.split(command)[1:]
    code = main(words)
    out = capsys.readouterr().out
    # The files of the invented grid are no real checkpoints and requests.
    assert code == (1 if words[0] == "verify" else 0)
    if words[0] == "run":
        (started,) = here
        assert started[0] == sys.executable
        assert started[-4:] == ["--configfile", "config/smoke.yaml", "--cores", started[-1]]
    elif words[0] != "verify":
        assert "smoke" in out.splitlines()[0] or out.startswith("vit-nano.digits.dense.seed0: done")


@pytest.mark.parametrize("command", IN_WORDS)
def test_a_command_within_a_sentence_parses(command):
    parser().parse_args(shlex.split(command.partition(" > ")[0]))


def test_the_printed_plan_is_that_of_the_command(here, capsys):
    shown = re.findall(r"```\n(config/smoke.*?)```", PART, re.DOTALL)[0].splitlines()
    assert main(["plan", "config/smoke.yaml", "--set", "training.default.steps=80"]) == 0
    said = capsys.readouterr().out.splitlines()
    until = next(number for number, line in enumerate(shown) if line.startswith("besides"))
    assert said[:until] == shown[:until]
    assert said[until + 1].startswith("cost: about ")
    assert len(expand(read_config(Path("config/smoke.yaml"))).points) == 6
