"""No title of a panel runs out of its picture or over another one, and no two panels have the same title."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import fake_inference  # noqa: E402
import fake_kernels  # noqa: E402
import fake_memory  # noqa: E402
import fake_records as fake  # noqa: E402
import fake_runs  # noqa: E402
import fake_study  # noqa: E402
import fake_training  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.records.export import export_grid  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402
from paper_figures.views._titles import DPI, SMALLEST, fit_titles  # noqa: E402

RECORDED = ROOT / "results" / "recorded"
# These take seconds with all that was recorded.
OF_KERNELS = [name for name in paper_figures.figures() if name.startswith("kernel_")]
OF_STEPS = ["pretraining_speedup", "training_memory", "time_breakdown"]
# Each column of this figure has a title, and the rows below it have none.
BARE = {"kernel_speedup"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A local grid beside the recorded ones, as a user sees them."""
    folder = fake.write_grid(tmp_path_factory.mktemp("layout") / "default")
    return load_table(folder, RECORDED)


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """Kernels and training steps."""
    folder = tmp_path_factory.mktemp("invented")
    export_grid(fake_kernels.write_kernels(folder / "default"), folder / "recorded")
    return load_table(fake_training.write_training(folder / "steps"), folder / "recorded")


def titles_of(figure: Figure) -> list:
    """The titles of panels that are shown, drawn as they are saved."""
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).draw()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    found = [title for axes in panels for title in (axes._left_title, axes.title, axes._right_title)]
    return [title for title in found if title.get_text()]


def check(figure: Figure) -> None:
    boxes = [(title.get_text(), title.get_window_extent()) for title in titles_of(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)


def told_by(axes) -> tuple[str, ...]:
    """What tells a panel from the others: its title, and what its axes show."""
    return axes.get_title(loc="left") or axes.get_title(), axes.get_xlabel(), axes.get_ylabel()


@pytest.mark.parametrize("name", [*OF_KERNELS, *OF_STEPS])
def test_titles_of_timings_fit_and_differ(invented, name):
    drawn = paper_figures.load(name).draw(invented)
    check(drawn)
    assert_told_apart(drawn, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*paper_figures.figures()} - {*OF_KERNELS, *OF_STEPS}))
def test_titles_of_a_local_grid_beside_recorded_ones_fit_and_differ(mixed, name):
    drawn = paper_figures.load(name).draw(mixed)
    check(drawn)
    assert_told_apart(drawn, name)


OTHERS = [
    ("energy", fake_inference.write_inference),
    ("inference_speedup", fake_inference.write_inference),
    ("inference_memory", fake_memory.write_memory),
    ("pareto", fake_study.write_study),
    ("recovery_vs_tokens", fake_study.write_study),
    ("time_to_loss", fake_runs.write_runs),
    ("switch_curves", fake_runs.write_runs),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), OTHERS)
def test_titles_of_what_was_not_recorded_yet_fit_and_differ(tmp_path, name, write):
    write(tmp_path / "default")
    drawn = paper_figures.load(name).draw(load_table(tmp_path / "default", tmp_path / "recorded"))
    assert "not run" not in {title.get_text() for title in titles_of(drawn)}
    check(drawn)
    assert_told_apart(drawn, name)


def assert_told_apart(figure: Figure, name: str) -> None:
    if name in BARE:
        return
    panels = [told_by(axes) for axes in figure.axes if axes.get_visible() and told_by(axes)[0]]
    assert [panel for panel, count in Counter(panels).items() if count > 1] == []


def figure_with(*titles: str, width: float = 7.0) -> tuple[Figure, list]:
    figure = Figure(figsize=(width, 2.0), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False).flat)
    for place, title in zip(axes, titles, strict=True):
        place.set_title(title, loc="left", fontsize=8)
    fit_titles(figure)
    return figure, [place._left_title for place in axes]


def test_titles_that_fit_stay_as_they_are():
    figure, titles = figure_with("GPT-2", "ViT\ndigits")
    assert [title.get_text() for title in titles] == ["GPT-2", "ViT\ndigits"]
    assert {title.get_fontsize() for title in titles} == {8}
    check(figure)


def test_a_title_that_nearly_fits_makes_all_of_them_a_little_smaller():
    figure, titles = figure_with("a" * 41, "b", "c")
    assert titles[0].get_text() == "a" * 41
    (size,) = {title.get_fontsize() for title in titles}
    assert SMALLEST <= size < 8
    check(figure)


def test_a_title_that_is_too_long_goes_on_in_the_next_line_and_is_cut_there():
    long = "SmolLM2 135M q4 with a very long name, pretrained and more of it"
    figure, titles = figure_with(f"{long}\ntext", "x " * 90, "y" * 200)
    lines = [title.get_text().split("\n") for title in titles]
    assert lines[0][-1] == "text"
    assert " ".join(lines[0][:2]) == long
    assert len(lines[1]) == 2
    assert lines[1][1].endswith("…")
    assert len(lines[2]) == 1
    assert lines[2][0].endswith("…")
    check(figure)


def test_panels_of_several_rows_only_look_to_their_own():
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    grid = figure.subplots(2, 2)
    grid[0, 1].set_visible(False)
    grid[0, 0].set_title("w" * 60, loc="left", fontsize=7)
    grid[1, 1].set_title("v", loc="left", fontsize=7)
    fit_titles(figure)
    assert grid[0, 0]._left_title.get_text() == "w" * 60
    check(figure)


def test_pictures_and_their_sources_lie_apart():
    """`paper_figures/<name>.pdf` is made beside no source, so a user may delete what was made."""
    assert [file.name for file in (ROOT / "paper_figures").glob("*.py")] == ["__init__.py"]
    assert {file.stem for file in paper_figures.FOLDER.glob("[!_]*.py")} == {
        *paper_figures.figures(), *paper_figures.tables()
    }  # fmt: skip
