"""`blast list`: every name that a config may use, with a line about each."""

from __future__ import annotations

import pytest

from blast import architectures, datasets
from blast.experiment.cli import main
from blast.experiment.listing import KINDS, catalogue
from blast.sparsity.config import METHOD_DETAILS


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_has_one_line_about_it_in_any_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = catalogue(kind)
    assert listed
    assert all(line and "\n" not in line for line in listed.values())


def test_the_names_are_those_that_a_config_takes():
    assert list(catalogue("architectures")) == architectures.names()
    assert list(catalogue("datasets")) == datasets.names()
    assert set(catalogue("methods")) == {"dense", *METHOD_DETAILS}
    assert "accuracy_vs_sparsity" in catalogue("figures")
    assert "results_table" in catalogue("tables")
    assert {"config", "smoke"} <= set(catalogue("configs"))
    assert "default" in catalogue("profiles")


def test_the_command_lists_what_is_asked_for(capsys):
    assert main(["list", "methods", "datasets"]) == 0
    out = capsys.readouterr().out
    assert out.index("methods:") < out.index("rigl_swap") < out.index("datasets:") < out.index("fashion_mnist")
    assert "architectures:" not in out
    assert main(["list", "dataset"]) == 2
    assert "datasets" in capsys.readouterr().err
