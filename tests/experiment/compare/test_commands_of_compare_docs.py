"""The commands that docs/compare.md and docs/artifact.md print run, or parse where they would take minutes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import fake_records as fake
import pytest

from blast.experiment.analysis.paper_values import read_paper_values
from blast.experiment.cli import main
from blast.experiment.cli import parser as blast_parser
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.records.export import export_grid
from blast.experiment.reproduce.claims import NEEDS

COMPARE, ARTIFACT = (CHECKOUT / "docs" / name for name in ("compare.md", "artifact.md"))


def commands(page: Path) -> list[str]:
    """The lines of the blocks of shell of a page that call `blast`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("blast ")]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Folder with the grids that the page names."""
    home = tmp_path_factory.mktemp("compare")
    grid = fake.write_grid(home / "results" / "default")
    shutil.copytree(grid, home / "results" / "other")
    export_grid(grid, home / "results" / "recorded")
    machine = home / "results" / "recorded" / fake.HARDWARE
    for file in machine.glob("*.csv"):
        file.write_text(file.read_text().replace(fake.HARDWARE, "nvidia-h200"))
    machine.rename(machine.with_name("nvidia-h200"))
    return home


def test_the_page_shows_every_verb_of_its_rooms():
    shown = {line.split()[1] for page in (COMPARE, ARTIFACT) for line in commands(page)}
    assert {"compare", "summary", "export", "import", "repeat", "reproduce"} <= shown


@pytest.mark.parametrize("line", commands(COMPARE))
def test_a_command_of_the_page_runs(line, results, monkeypatch, capsys):
    monkeypatch.chdir(results)
    monkeypatch.setenv("BLAST_CACHE", str(results / "cache"))
    if line.startswith("blast import"):
        # The command before it in the page.
        assert main(shlex.split(commands(COMPARE)[commands(COMPARE).index(line) - 1])[1:]) == 0
    if line.startswith("blast repeat"):
        blast_parser().parse_args(shlex.split(line)[1:])  # it would fetch and prepare the data
        return
    assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", commands(ARTIFACT))
def test_a_command_for_reviewers_parses(line):
    assert callable(blast_parser().parse_args(shlex.split(line)[1:]).run)


def test_the_page_for_reviewers_has_every_claim_with_what_it_needs():
    text = ARTIFACT.read_text()
    for value in read_paper_values():
        need = NEEDS[value.id]
        minutes = "?" if need.minutes is None else f"{need.minutes:g}"
        row = f"| `{value.id}` | {value.shown} | {need.hardware} | {minutes} | `{need.command(value.id)}` |"
        assert row.replace("`–`", "–") in text, row
