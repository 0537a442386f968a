"""The views of whole training runs: loss by time, time to equal loss, and the loss across the switch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for place in (Path(__file__).parent, ROOT):
    sys.path.insert(0, str(place))
import fake_runs as fake  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.records.export import export, export_grid  # noqa: E402
from blast.experiment.records.rows import read_rows  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402

SKIPPED = "gpt2.technical_text.blast.s80.b64.seed0"
FIGURES = ("time_to_loss", "switch_curves")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A table of runs that were exported, read from the exported files alone."""
    folder = tmp_path_factory.mktemp("runs")
    export_grid(fake.write_runs(folder / "study"), folder / "recorded")
    return load_table(folder / "nothing", folder / "recorded")


def words(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


@pytest.mark.parametrize("name", FIGURES)
def test_the_figure_is_the_same_from_local_records_and_from_exported_rows(runs, name, tmp_path):
    local = load_table(fake.write_runs(tmp_path / "study"), tmp_path / "none")
    drawn = [paper_figures.load(name).draw(table) for table in (runs, local)]
    titles = [sorted(panels(figure)) for figure in drawn]
    assert titles[0] == titles[1]
    assert [title.split("\n")[0].split(",")[0] for title in titles[0]] == ["GPT-2", "ViT S 4"]
    assert "imaginary GPU" in words(drawn[0])


@pytest.mark.parametrize("name", [*FIGURES, "time_to_loss_table"])
def test_without_a_run_the_view_says_not_run(name, tmp_path):
    table = load_table(tmp_path / "none", tmp_path / "none")
    module = paper_figures.load(name)
    said = words(module.draw(table)) if hasattr(module, "draw") else module.printed(module.rows(table)).to_string()
    assert "not run" in said


def test_records_without_times_are_not_drawn(tmp_path):
    export([fake.make_record_of(point, timed=False) for point in fake.points()], tmp_path)
    table = load_table(tmp_path / "none", tmp_path)
    assert "not run" in words(paper_figures.load("time_to_loss").draw(table))
    assert list(paper_figures.load("time_to_loss_table").rows(table)["status"]) == ["not run"]


def test_each_run_ends_where_its_time_and_loss_do(runs):
    axes = panels(paper_figures.load("time_to_loss").draw(runs))["GPT-2\ntechnical English"]
    assert axes.get_ylabel() == "validation loss (nats/token)"
    long = [line for line in axes.lines if len(line.get_xdata()) == fake.STEPS // fake.EVERY]
    assert len(long) == len(fake.points())
    ends = sorted((line.get_xdata()[-1], line.get_ydata()[-1]) for line in long)
    expected = sorted((fake.seconds_at(point, fake.STEPS - 1) - fake.COMPILING) / 60 for point in fake.points())
    assert [minutes for minutes, _ in ends] == pytest.approx(expected)


def test_a_diamond_shows_where_a_run_reaches_the_last_loss_of_dense(runs, tmp_path, monkeypatch):
    nowhere = words(paper_figures.load("time_to_loss").draw(runs)).replace("\n", " ")
    assert "dense's last loss, 3.000 after 13 min (1600 steps), is reached by none." in nowhere
    monkeypatch.setitem(fake.LOSS, ("blast", 0.95), 2.9)
    export([fake.make_record_of(point) for point in fake.points()], tmp_path)
    table = load_table(tmp_path / "none", tmp_path)
    drawn = paper_figures.load("time_to_loss").draw(table)
    axes = panels(drawn)["GPT-2\ntechnical English"]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    frame = paper_figures.load("time_to_loss_table").rows(table)
    own = frame[(frame["end_of"] == "dense") & (frame["sparsity"] == 0.95) & (frame["method"] == "blast")]
    assert len(own) == 2  # one of them stays masked-dense
    assert sorted(line.get_xdata()[0] for line in hollow) == pytest.approx(
        sorted((own["pruned_s"] - fake.COMPILING) / 60)
    )
    final = fake.loss_at(fake.STEPS - 1, fake.DENSE_LOSS)
    assert [line.get_ydata()[0] for line in hollow] == pytest.approx([final] * 2)
    assert "not by BLaST 80 %, BLaST 90 %, swap (RigL) 95 %." in words(drawn).replace("\n", " ")


def test_the_table_gives_the_ratios_of_whole_runs_and_at_equal_loss_and_says_what_was_not_reached(runs):
    module = paper_figures.load("time_to_loss_table")
    frame = module.rows(runs)
    assert len(frame) == 2 * 3 * (len(fake.points()) - 1)
    one = frame[(frame["model"] == "gpt2") & (frame["method"] == "rigl_swap")].set_index("end_of")
    pruned, dense = one.loc["pruned"], one.loc["dense"]
    point = fake.make_point("rigl_swap", 0.95)
    assert pruned["pruned_s"] == pytest.approx(fake.seconds_at(point, fake.STEPS - 1))
    assert pruned["loss"] == pytest.approx(3.14, abs=0.001)
    assert pruned["ratio"] == pytest.approx(pruned["dense_s"] / pruned["pruned_s"])
    running = [pruned[key] - fake.COMPILING for key in ("dense_s", "pruned_s")]
    assert pruned["ratio_without_compiling"] == pytest.approx(running[0] / running[1])
    assert pruned["pruned_compile_s"] == fake.COMPILING
    assert 0.005 < pruned["mask_update_share"] < 0.02  # a hundredth of all seconds, over those of steps
    assert dense["dense_s"] == pytest.approx(fake.DENSE_STEP * fake.STEPS)
    assert (dense["status"], pruned["status"]) == ("not reached", "ok")
    steps = one.loc["steps"]
    whole = fake.seconds_at(fake.make_point(), fake.STEPS - 1), fake.seconds_at(point, fake.STEPS - 1)
    assert steps["ratio"] == pytest.approx(whole[0] / whole[1])
    assert steps["ratio_without_compiling"] == pytest.approx((whole[0] - fake.COMPILING) / (whole[1] - fake.COMPILING))
    shown = module.printed(frame)
    assert list(shown[(shown["model"] == "GPT-2") & (shown["run"] == "swap (RigL) 95 %")]["this run"]) == [
        "11 min", "not reached", "11 min",
    ]  # fmt: skip
    assert "BLaST 95 %, masked" in set(shown["run"])


def test_a_pruned_run_that_is_lower_than_dense_ever_was_is_not_reached_by_dense(tmp_path, monkeypatch):
    monkeypatch.setitem(fake.LOSS, ("blast", 0.95), 2.9)
    export([fake.make_record_of(point) for point in (fake.make_point(), fake.make_point("blast", 0.95))], tmp_path)
    frame = paper_figures.load("time_to_loss_table").rows(load_table(tmp_path / "none", tmp_path))
    by_end = frame.set_index("end_of")
    assert (by_end.loc["pruned", "status"], by_end.loc["dense", "status"]) == ("not reached", "ok")
    assert by_end.loc["dense", "ratio"] > 1


def test_a_run_that_was_not_run_is_named_in_both(tmp_path):
    table = load_table(fake.write_runs(tmp_path / "study", skip=SKIPPED), tmp_path)
    figure = paper_figures.load("time_to_loss").draw(table)
    assert "Not run: GPT-2 technical English BLaST 80 % seed 0." in words(figure).replace("\n", " ")
    last = paper_figures.load("time_to_loss_table").rows(table).iloc[-1]
    assert (last["model"], last["sparsity"], last["status"]) == ("gpt2", 0.8, "not run")


def test_without_the_dense_run_the_table_says_so(tmp_path):
    export([fake.make_record_of(fake.make_point("blast", 0.95))], tmp_path)
    frame = paper_figures.load("time_to_loss_table").rows(load_table(tmp_path / "none", tmp_path))
    assert list(frame["status"]) == ["dense not run"]


def test_the_switch_is_marked_and_the_difference_is_that_of_the_two_runs(runs):
    figure = paper_figures.load("switch_curves").draw(runs)
    loss = panels(figure)["GPT-2, BLaST 95 %\ntechnical English"]
    gap = figure.axes[figure.axes.index(loss) + len(panels(figure))]
    for axes in (loss, gap):
        assert fake.SWITCH in [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    text = words(figure)
    assert f"sparse from step {fake.SWITCH}" in text
    assert "difference at most 0 before, 2.0e-04 after" in text
    longest = max(gap.lines, key=lambda line: len(line.get_xdata()))
    assert max(map(abs, longest.get_ydata())) == pytest.approx(fake.ROUNDING, rel=0.05)


def test_a_pair_without_the_curve_of_its_state_says_that_the_switch_was_not_recorded(tmp_path):
    records = [fake.make_record_of(point) for point in fake.points()]
    for record in records:
        record["result"]["curves"].pop("sparse_execution", None)
    export(records, tmp_path)
    figure = paper_figures.load("switch_curves").draw(load_table(tmp_path / "none", tmp_path))
    assert "step of the switch\nnot recorded" in words(figure)


def test_exported_runs_stay_small_and_keep_the_step_of_the_switch(tmp_path):
    export_grid(fake.write_runs(tmp_path / "study"), tmp_path / "recorded")
    file = tmp_path / "recorded" / fake.GPU / "training.csv"
    assert file.stat().st_size < 40_000 * 2 * len(fake.points())
    state = [row for row in read_rows(file) if row["metric"] == "sparse_execution" and row["value"] == 1]
    assert min(row["step"] for row in state) == fake.SWITCH


def test_methods_of_the_quality_study_have_lines_of_their_own():
    from paper_figures.views import _runs as runs

    lines = [str(runs.LINES[name]) for name in ("dense", "gmp", "small_dense", "rigl_swap")]
    assert len({*lines, str(runs.OTHER_LINE), str(runs.MASKED_LINE)}) == 6
