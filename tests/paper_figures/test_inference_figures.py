"""Figures of inference from invented records."""

from __future__ import annotations

import fake_inference as fake
import pytest

import paper_figures
from blast.experiment.records.table import load_table
from paper_figures.views import _decoding as decoding


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference")
    fake.write_inference(folder / "grid")
    return load_table(folder / "grid", folder / "recorded")


def words(figure):
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_speed_ups_are_those_of_the_same_point(timed):
    found = decoding.speed_ups(decoding.timed(timed), "latency")
    assert len(found) == 2 * len(fake.SPARSITIES) * len(fake.SEQUENCES) * len(fake.PROMPTS)
    for row in found.itertuples():
        assert row.ratio == pytest.approx(1 / (1 - 0.5 * row.sparsity))


def test_the_figure_has_a_panel_for_the_first_token_and_one_for_the_others(timed):
    figure = paper_figures.load("inference_speedup").draw(timed)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 4
    assert [title.partition(": ")[2] for title in titles] == ["first token", "each token"] * 2
    text = words(figure)
    for label in ("1 sequence\n", "64 sequences", "prompt of 128 tokens", "prompt of 2048 tokens", "the paper's 1.6×"):
        assert label in text
    lines = [line for line in figure.axes[1].lines if len(line.get_ydata()) == len(fake.SPARSITIES)]
    assert len(lines) == len(fake.SEQUENCES) * len(fake.PROMPTS)
    assert max(lines[0].get_ydata()) == pytest.approx(1 / (1 - 0.5 * 0.95))
    # The legend names the lines as they are drawn.
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    drawn = {name: line.get_linestyle() for name, line in zip(names, legend.legend_handles, strict=True)}
    prompts = [drawn[f"prompt of {prompt} tokens"] for prompt in fake.PROMPTS]
    assert prompts == ["-", "--"]
    assert [line.get_linestyle() for line in lines] == prompts * len(fake.SEQUENCES)


def test_the_energy_names_the_idle_power(timed):
    figure = paper_figures.load("energy").draw(timed)
    text = words(figure)
    assert "Idle, the GPU takes 75 W" in " ".join(text.split())
    assert "1.90×" in text
    sequences = len(fake.SEQUENCES)
    for axes in figure.axes:
        # The factor stands at the end of our line.
        ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines if line.get_linestyle() == "-"]
        assert sorted(note.xy for note in axes.texts) == sorted(ends)
        assert len(ends) == sequences


@pytest.mark.parametrize("name", ["inference_speedup", "energy"])
def test_without_records_of_a_gpu_the_figure_says_not_run(tmp_path, name):
    fake.write_inference(tmp_path / "grid", ("llama-3.2-1b",), hardware="cpu-imaginary")
    for folder in ("none", "grid"):
        figure = paper_figures.load(name).draw(load_table(tmp_path / folder, tmp_path / "recorded"))
        assert "not run" in words(figure)
