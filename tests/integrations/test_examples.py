"""The scripts of `examples/` run, a few steps long."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import blast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = ["hf_trainer", "accelerate_loop"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_trains_prunes_saves_loads_and_generates(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "6", "--folder", str(tmp_path)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "sparsity of the MLPs: 0.80" in printed
    assert "You may reproduce" in printed
    masks = blast.masks_of(blast.load(tmp_path / "sparse"))
    assert len(masks) == 12
    assert all(int(mask.sum()) == round(0.2 * mask.numel()) for mask in masks.values())


def test_every_example_is_run():
    """`serve` is run by tests/test_documentation_blocks.py."""
    scripts = {file.stem for file in EXAMPLES.glob("*.py") if "argparse" in file.read_text()}
    assert scripts == {*SCRIPTS, "serve"}
