"""The commands that README and docs/prune.md print parse, and use the defaults that the page names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from blast.experiment.cli import parser as blast_parser
from blast.experiment.own_model.step_time import as_time

ROOT = Path(__file__).resolve().parents[3]
# Where the example of the README was seen.
README_MACHINE = "cpu-amd-epyc-family-25-model-1"
VERBS = ("prune", "scan", "generate", "eval")
COMMANDS = [
    (page, line)
    for page in ("README.md", "docs/prune.md")
    for line in re.findall(rf"^blast (?:{'|'.join(VERBS)}) .*$", (ROOT / page).read_text(), flags=re.MULTILINE)
]


def test_the_readme_prunes_and_generates_and_the_page_shows_every_verb():
    assert {"prune", "generate"} <= {line.split()[1] for page, line in COMMANDS if page == "README.md"}
    assert {line.split()[1] for page, line in COMMANDS if page == "docs/prune.md"} == set(VERBS)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_printed_command_parses(page, line):
    options = blast_parser().parse_args(shlex.split(line)[1:])
    assert options.run.__module__ == "blast.experiment.own_model.commands"


def test_the_readme_asks_for_at_most_ten_minutes():
    (line,) = [line for page, line in COMMANDS if page == "README.md" and line.startswith("blast prune ")]
    assert blast_parser().parse_args(shlex.split(line)[1:]).minutes <= 10


def test_the_page_names_the_defaults_of_the_command():
    options = blast_parser().parse_args(["prune", "model", "--text", "text", "--out", "out"])
    page = (ROOT / "docs" / "prune.md").read_text()
    for option, value in (
        ("`--sparsity`", f"{options.sparsity:g}"),
        ("`--dense-layers`", f"`{options.dense_layers}`"),
        ("`--start`", f"`{options.start}`"),
        ("`--length`, `--batch`", f"{options.length}, {options.batch}"),
        ("`--learning-rate`", "3e-4" if options.learning_rate == 3e-4 else "?"),
    ):
        assert f"| {option} | {value} |" in page


def test_the_numbers_of_the_pages_are_those_of_the_recorded_reports():
    reports = sorted((ROOT / "results" / "recorded").glob("*/own_model/*.json"))
    assert reports
    page, readme = (ROOT / "docs" / "prune.md").read_text(), " ".join((ROOT / "README.md").read_text().split())
    for file in reports:
        report = json.loads(file.read_text())
        bits = f"{report['dense']['bits_per_byte']:.3f} / {report['sparse']['bits_per_byte']:.3f}"
        kept = f"{100 * report['verdict']['kept']:.0f}"
        wrecked = ", wrecked" if report["verdict"]["wrecked"] else ""
        assert f"| {report['plan']['steps']} x {report['tokens_a_step']} | {bits} | {kept}{wrecked} |" in page
        rates = [f"{report[side]['tokens_per_second']:.1f}" for side in ("dense", "sparse")]
        assert f"| {rates[0]} | {rates[1]} |" in page
        if report["options"]["sparsity"] == 0.5 and file.parts[-3] == README_MACHINE:
            seconds = report["seconds"]
            assert f"{as_time(seconds['all'])}, of which {report['plan']['steps']} steps" in readme
            assert f"took {as_time(seconds['training'])};" in readme
            assert f"{report['dense']['bits_per_byte']:.3f} bits a byte dense and " in readme
            assert f"dense and {report['sparse']['bits_per_byte']:.3f} sparse;" in readme
            assert f"{rates[0]} decoded tokens a second dense and {rates[1]} sparse" in readme
