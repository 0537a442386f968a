"""The command `blast`: its help, and what it says in an environment that lacks packages."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest
from patience import PATIENCE

from blast.experiment.cli import GROUPS, main
from blast.experiment.cli import parser as blast_parser


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
    (actions,) = [action for action in blast_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = dict(actions.choices)
    (inner,) = [action for action in found.pop("records")._actions if isinstance(action, argparse._SubParsersAction)]
    return found | {f"records {name}": parser for name, parser in inner.choices.items()}


@pytest.mark.parametrize(("name", "parser"), verbs().items())
def test_the_help_of_a_verb_is_a_sentence_and_examples_that_parse(name, parser):
    sentence, empty, *lines = parser.description.split("\n")
    assert sentence.endswith(".")
    assert not empty
    examples = [line for line in lines if line.startswith("Example: ")]
    assert examples
    assert lines[-len(examples) :] == examples
    for example in examples:
        words = shlex.split(example.removeprefix("Example: blast ").split(" > ")[0])
        assert " ".join(words).startswith(name)
        blast_parser().parse_args(words)
    for action in parser._actions:
        assert action.help or action.dest in ("points", "dataset", "what"), action.dest


def test_the_help_of_the_command_has_every_verb_once_in_groups(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    listed = [line for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(line[2:].split("  ")[0] for line in listed) == sorted(verbs())
    assert all(f"\n{title}:\n" in text for title in GROUPS)


def test_the_command_alone_prints_its_help_and_ends_with_code_2(capsys):
    assert main([]) == 2
    assert "Look things up:" in capsys.readouterr().out


def completed(words: str, script: str) -> list[str]:
    """What bash completes the last word to."""
    count = len(words.split()) - 1
    ask = f"COMP_WORDS=({words}); COMP_CWORD={count}; _shtab_blast; echo ${{COMPREPLY[@]}}"
    found = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, timeout=PATIENCE)
    return found.stdout.split()


def test_bash_completes_verbs_options_and_files(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed("blast chec", script) == ["check"]
    assert completed("blast check --li", script) == ["--list"]
    assert completed("blast check pyproj", script) == ["pyproject.toml"]


def test_there_is_a_completion_for_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef blast")
