"""What a figure shows of its values, and what it says below them."""

from __future__ import annotations

import fake_records as fake
import fake_runs
import fake_study
import numpy as np
import pytest

import paper_figures
from blast.experiment.records.table import load_table

CHOSEN = "Learning rates were chosen on another part of the held-out data."


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A grid with one learning rate."""
    grid = fake.write_grid(tmp_path_factory.mktemp("results") / "default")
    return load_table(grid, grid / "recorded")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A study with trials of learning rates."""
    folder = tmp_path_factory.mktemp("study")
    fake_study.write_study(folder / "quality")
    return load_table(folder / "quality", folder / "recorded")


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_only_a_figure_with_trials_says_how_they_were_chosen(single, several):
    draw = paper_figures.load("quality_vs_sparsity").draw
    # A line may be broken where the footer is wide.
    assert CHOSEN in " ".join(words(draw(several)).split())
    assert CHOSEN not in " ".join(words(draw(single)).split())


def test_curves_are_scaled_to_the_last_four_fifths_of_the_steps(single):
    figure = paper_figures.load("training_curves").draw(single)
    seen = 0
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        if "loss" not in axes.get_ylabel() or not lines:
            continue
        low, high = axes.get_ylim()
        steps, values = (np.concatenate([line.get_data()[part] for line in lines]) for part in (0, 1))
        late = values[steps >= 0.2 * steps.max()]
        margin = 0.06 * (late.max() - late.min())
        assert (low, high) == pytest.approx((late.min() - margin, late.max() + margin))
        seen += values.max() > high
    assert seen, "no curve begins above the scale, so that this test shows nothing"


def test_losses_by_time_are_scaled_to_what_comes_after_a_third_of_the_longest_run(tmp_path):
    table = load_table(fake_runs.write_runs(tmp_path / "study"), tmp_path / "none")
    (axes,) = paper_figures.load("time_to_loss").draw(table[table["model"] == "gpt2"]).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == fake_runs.STEPS // fake_runs.EVERY]
    times, losses = (np.concatenate([line.get_data()[part] for line in curves]) for part in (0, 1))
    late = losses[times >= 0.35 * times.max()]
    margin = 0.06 * (late.max() - late.min())
    assert axes.get_ylim() == pytest.approx((late.min() - margin, late.max() + margin))
    assert losses.max() > axes.get_ylim()[1]


def test_the_spread_of_seeds_is_that_of_several_seeds(single, several):
    rows = paper_figures.load("results_table").rows(several)
    rows = rows[rows["value"].notna()]
    more, one = rows[rows["seeds"] > 1], rows[rows["seeds"] == 1]
    assert len(more)
    assert len(one)
    assert more["seed_spread"].notna().all()
    assert (more["seed_spread"] > 0).any()
    assert one["seed_spread"].isna().all()
