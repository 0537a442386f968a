"""The views of inference memory: computed bars and numbers, with measured peaks beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

ROOT = Path(__file__).resolve().parents[2]
for place in (Path(__file__).parent, ROOT):
    sys.path.insert(0, str(place))
import fake_memory  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.analysis import gpu_cost  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402

LARGE, BATCH = gpu_cost.MODELS[-1], gpu_cost.SERVINGS[-1]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = fake_memory.write_memory(tmp_path_factory.mktemp("memory") / "default")
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    return load_table(empty, empty)


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def lines_of(axes):
    """Heights of the measured marks."""
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "-"]


def test_the_bars_stand_on_one_another_and_end_at_the_number_above_them(nothing):
    figure = paper_figures.load("inference_memory").draw(nothing)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Llama 3.1 405B")
    tops = {}
    for bar in panel.patches:
        place = round(bar.get_x() + bar.get_width() / 2, 3)
        assert bar.get_y() == pytest.approx(tops.get(place, 0.0))
        tops[place] = bar.get_y() + bar.get_height()
    expected = [
        gpu_cost.computed_memory(LARGE, sparsity, serving).total / 1e9
        for serving in gpu_cost.SERVINGS
        for sparsity in gpu_cost.SPARSITIES
    ]
    assert list(tops.values()) == pytest.approx(expected)
    written = [text.get_text() for text in panel.texts]
    assert all(f"{top:.3g}" in written for top in expected)
    assert "computed" in words(figure)
    assert not any(lines_of(axes) for axes in figure.axes)


def test_no_mark_of_a_measured_peak_strikes_through_a_number(table):
    figure = paper_figures.load("inference_memory").draw(table)
    FigureCanvasAgg(figure).draw()
    marks = 0
    for axes in figure.axes:
        numbers = [text.get_window_extent() for text in axes.texts if text.get_text().replace(".", "").isdigit()]
        for line in axes.lines:
            if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.2:
                mark = line.get_window_extent()
                marks += 1
                assert not any(box.x0 < mark.x1 and mark.x0 < box.x1 and box.y0 < mark.y0 < box.y1 for box in numbers)
    assert marks


def test_measured_peaks_are_drawn_where_records_are_and_nowhere_else(table):
    figure = paper_figures.load("inference_memory").draw(table)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    found = lines_of(panels["Llama 3.1 8B"])
    expected = [
        fake_memory.MORE * gpu_cost.computed_memory("llama-3.1-8b", sparsity, serving).total / 1e9
        for serving in gpu_cost.SERVINGS
        for sparsity in (0.0, 0.9, 0.95)
    ]
    assert found == pytest.approx(expected)
    assert len(lines_of(panels["Llama 3.1 70B"])) == 4, "its dense model did not fit"
    assert not lines_of(panels["Llama 3.1 405B"])
    assert "not run" not in words(figure)


def test_the_table_has_gpus_and_their_price_for_each_memory(table):
    view = paper_figures.load("gpus_and_cost")
    frame = view.rows(table)
    assert len(frame) == len(gpu_cost.MODELS) * len(gpu_cost.SERVINGS) * len(gpu_cost.SPARSITIES)
    assert set(frame["known"]) == {"computed"}
    prices = {gb: gpu_cost.lowest_price(gpu_cost.read_gpu_prices(), gb).dollars_per_hour for gb in gpu_cost.MEMORIES}
    for row in frame.to_dict("records"):
        for gb, price in prices.items():
            assert row[f"dollars_{gb}"] == pytest.approx(row[f"gpus_{gb}"] * price)
        assert row["total_gb"] > row["weights_gb"] + row["kv_cache_gb"]
    of = frame.set_index(["model", "sparsity", "batch"])
    assert (of.loc[(LARGE, 0.0, 1), "gpus_80"], of.loc[(LARGE, 0.95, 1), "gpus_80"]) == (16, 4)
    assert of.loc[("llama-3.1-8b", 0.9, 32), "measured"] == "ok"
    assert of.loc[("llama-3.1-8b", 0.8, 32), "measured"] == "not run"
    ratio = of.loc[(LARGE, 0.0, 1), "weights_gb"] / of.loc[(LARGE, 0.95, 1), "weights_gb"]
    assert ratio > 4.38
    shown = view.printed(frame)
    assert "16 ($51.20)" in set(shown["GPUs of 80 GB"])
    said = " ".join(view.remarks(frame))
    assert "not" in said
    assert "hyperstack" in said


def test_a_memory_without_a_price_has_gpus_and_no_dollars(nothing, monkeypatch):
    view = paper_figures.load("gpus_and_cost")
    known = [price for price in gpu_cost.read_gpu_prices() if price.memory_gb != 192]
    monkeypatch.setattr(gpu_cost, "read_gpu_prices", lambda: known)
    frame = view.rows(nothing)
    assert frame["dollars_192"].isna().all()
    assert frame["gpus_192"].notna().all()
    assert "$" not in " ".join(view.printed(frame)["GPUs of 192 GB"])
    assert "no price of a GPU of 192 GB is known" in " ".join(view.remarks(frame))
