"""The page of figures has every figure, with the caption and the picture of today."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
for place in (ROOT, ROOT / "workflow" / "scripts"):
    sys.path.insert(0, str(place))
import figure_page  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402

PAGE = ROOT / "docs" / "figures.md"
PICTURES = sorted((ROOT / "docs" / "images").glob("*.png"))


def test_the_page_of_figures_is_current(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    assert figure_page.main(["--page", str(tmp_path / "docs" / "figures.md")]) == 0
    renewed = (tmp_path / "docs" / "figures.md").read_text()
    assert renewed == PAGE.read_text(), "run `python workflow/scripts/figure_page.py`"


def test_every_figure_is_on_the_page_with_its_command():
    text = PAGE.read_text()
    for name in paper_figures.figures():
        assert f"`snakemake --cores 1 paper_figures/{name}.pdf`" in text


def test_the_pictures_of_the_docs_are_small_and_each_is_shown_on_a_page():
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for file in PICTURES:
        with Image.open(file) as picture:
            assert picture.width <= 1400, file
        assert file.stat().st_size < 200_000, file
        assert f"images/{file.name}" in pages, file
    assert sum(file.stat().st_size for file in PICTURES) < 2_000_000


@pytest.mark.slow
def test_pictures_are_drawn_of_what_is_recorded_and_not_of_what_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_figures, "figures", lambda: ["inference_memory", "energy"])
    figure_page.draw_pictures(tmp_path)
    (made,) = tmp_path.iterdir()
    assert made.name == "inference_memory.png"
    with Image.open(made) as picture:
        assert picture.width == figure_page.WIDTH
        assert picture.mode == "P"


def test_the_command_of_a_figure_is_planned():
    """It names a file of `paper_figures` that a rule makes; tests/workflow runs such targets."""
    (command,) = re.findall(r"^snakemake --cores 1 paper_figures/(\w+)\.pdf$", PAGE.read_text(), re.MULTILINE)
    assert command in paper_figures.figures()
    assert "[a-z0-9_]+" in (ROOT / "Snakefile").read_text()


@pytest.mark.parametrize("name", paper_figures.figures())
def test_a_figure_has_a_caption(name):
    assert (ROOT / "workflow" / "report" / f"{name}.rst").read_text().strip()


@pytest.fixture(scope="module")
def recorded():
    return load_table(ROOT / "no results", ROOT / "results" / "recorded")


@pytest.mark.slow
@pytest.mark.parametrize("name", paper_figures.tables())
def test_every_column_of_a_printed_table_is_explained(name, recorded):
    """In docs/tables.md, in the lines of its table or in those that all tables share."""
    module = paper_figures.load(name)
    frame = module.rows(paper_figures.rows_of(module, recorded))
    shown = module.printed(frame) if hasattr(module, "printed") else frame
    common, *sections = (ROOT / "docs" / "tables.md").read_text().split("\n## ")
    (part,) = [section for section in sections if f"| `{name}` |" in section]
    lines = part[part.index(f"| `{name}` |") :].splitlines()
    end = next((number for number, line in enumerate(lines[1:], 1) if not line.startswith("| |")), len(lines))
    named = [line.split("|")[2] for line in lines[:end]]
    named += [line.split("|")[1] for line in common.splitlines() if line.startswith("| ")]
    # "80 %: seeds" is the column "seeds" at one sparsity.
    columns = [column.rpartition(": ")[2] for column in shown.columns]
    assert [column for column in columns if not any(column in text for text in named)] == []
