"""The command `blast`: its help, and what it says in an environment that lacks packages."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest
from patience import PATIENCE

from blast.experiment.cli import _parser


def run_without(package: str, *words: str) -> subprocess.CompletedProcess:
    """Runs the command in an environment that lacks a package."""
    script = (
        f"import sys; sys.modules[{package!r}] = None; from blast.experiment.cli import main; sys.exit(main({words}))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)


def test_a_missing_package_is_one_sentence_that_says_how_to_get_it():
    found = run_without("yaml", "schema")
    assert found.returncode == 2
    assert found.stderr == (
        "blast: the package 'yaml' is not installed in this environment; run `make env` for a new "
        "environment with all packages, or `pip install -e '.[experiment]'` in this one.\n"
    )


def test_a_missing_module_of_ours_is_a_traceback_without_advice():
    found = run_without("blast.experiment.plan.config", "schema")
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "make env" not in found.stderr


@pytest.mark.parametrize("package", ["lm_eval", "datasets"])
def test_the_command_starts_without_packages_that_only_the_workflow_needs(package):
    assert run_without(package, "schema").returncode == 0


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb by name; the verb `records` is replaced by its own verb."""
    (actions,) = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = dict(actions.choices)
    (inner,) = [action for action in found.pop("records")._actions if isinstance(action, argparse._SubParsersAction)]
    return found | {f"records {name}": parser for name, parser in inner.choices.items()}


@pytest.mark.parametrize(("name", "parser"), verbs().items())
def test_the_help_of_a_verb_is_one_sentence_and_an_example_that_parses(name, parser):
    sentence, empty, example = parser.description.split("\n")
    assert sentence.endswith(".")
    assert not empty
    words = shlex.split(example.removeprefix("Example: blast ").split(" > ")[0])
    assert " ".join(words).startswith(name)
    _parser().parse_args(words)
    for action in parser._actions:
        assert action.help or action.dest in ("points", "dataset", "what"), action.dest
