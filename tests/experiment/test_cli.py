"""The command `blast` where the environment lacks something."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_without(package: str, *words: str) -> subprocess.CompletedProcess:
    """The command in an environment that lacks a package."""
    script = (
        f"import sys; sys.modules[{package!r}] = None; from blast.experiment.cli import main; sys.exit(main({words}))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_missing_package_is_one_sentence_that_says_how_to_get_it():
    found = run_without("yaml", "schema")
    assert found.returncode == 2
    assert found.stderr == (
        "blast: the package 'yaml' is not installed in this environment; `make env` installs all that the "
        "workflow needs, `pip install -e '.[experiment]'` what this environment lacks.\n"
    )


def test_a_module_of_ours_that_is_missing_is_a_fault_and_no_advice():
    found = run_without("blast.experiment.plan.config", "schema")
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "make env" not in found.stderr


@pytest.mark.parametrize("package", ["lm_eval", "datasets"])
def test_the_command_starts_without_what_only_the_workflow_needs(package):
    assert run_without(package, "schema").returncode == 0
