"""The views of training steps, and the speed-up of a whole pretraining run derived from them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
for place in (Path(__file__).parent, ROOT):
    sys.path.insert(0, str(place))
import fake_training  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.analysis import pretraining  # noqa: E402
from blast.experiment.records.export import export, export_grid  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402
from paper_figures.views import _training as training  # noqa: E402

FIGURES = ("pretraining_speedup", "training_memory", "time_breakdown")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Rows of the suite, from records that were exported and read again."""
    folder = tmp_path_factory.mktemp("training")
    export_grid(fake_training.write_training(folder / "default"), folder / "recorded")
    return load_table(folder / "nothing", folder / "recorded")


def words(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def times_of(table, model):
    rows = pretraining.step_rows(table)
    case = next(case for case in training.cases(rows) if case[0] == model)
    return pretraining.step_times(pretraining.of_case(rows, case))


@pytest.mark.parametrize("name", FIGURES)
def test_each_panel_names_its_model_and_block(steps, name):
    drawn = paper_figures.load(name).draw(steps)
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in drawn.axes if axes.get_visible()]
    assert titles == ["Llama 3.2 1B, block 128", "GPT-2 XL, block 64", "ViT L 16, block 64", "GPT-2, block 64"]
    assert "imaginary GPU" in words(drawn)


@pytest.mark.parametrize("name", FIGURES)
def test_views_of_training_steps_ignore_cpu_timings(tmp_path, name):
    export([fake_training.make_record_of(fake_training.points()[0], "cpu-imaginary-processor")], tmp_path)
    assert "not run" in words(paper_figures.load(name).draw(load_table(tmp_path / "none", tmp_path)))


@pytest.mark.parametrize("name", FIGURES)
def test_a_step_that_was_not_run_is_named(tmp_path, name):
    skipped = fake_training.points()[0].id
    table = load_table(fake_training.write_training(tmp_path / "default", skip=skipped), tmp_path)
    assert "Not run: GPT-2 XL 80 %." in words(paper_figures.load(name).draw(table)).replace("\n", " ")


def test_the_step_time_between_measured_sparsities_lies_on_the_line_between_them(steps):
    times = times_of(steps, "gpt2-xl")
    assert times.sparse_at(0.1) == pytest.approx(times.sparse[0.9])
    assert times.sparse_at(0.15) == pytest.approx((times.sparse[0.8] + times.sparse[0.9]) / 2)
    beyond = times.sparse[0.8] + (times.sparse[0.8] - times.sparse[0.9]) * 3
    assert times.sparse_at(0.5) == pytest.approx(beyond)
    assert times.sparse_at(0.01) == times.sparse[0.95]


def test_a_pretraining_is_the_sum_of_its_steps():
    """Dense and masked-dense take 100 ms, ours 40 + 100 l ms, so ours is faster below 60 % live blocks."""
    times = pretraining.StepTimes(100.0, 100.0, 0.0, {0.8: 60.0, 0.9: 50.0, 0.95: 45.0})
    constant = [min(100.0, 40 + 100 * live) for live in _shares(0.95)]
    expected = 100 * len(constant) / (sum(constant) + _update_ms(constant))
    assert pretraining.whole_run(times, 0.95, "swap").speed_up == pytest.approx(expected)
    doubled = [min(1.0, 2 * live) if step < 400 else live for step, live in enumerate(_shares(0.95))]
    union = [min(100.0, 40 + 100 * live) for live in doubled]
    assert pretraining.whole_run(times, 0.95, "union").speed_up == pytest.approx(
        100 * 500 / (sum(union) + _update_ms(union))
    )


def _shares(final):
    """Shares of live blocks under the cubic schedule of 500 steps; masks are fixed for the last 100."""
    return [1 - final + final * (1 - step / 400) ** 3 if step < 400 else 1 - final for step in range(500)]


def _update_ms(steps):
    """Extra milliseconds of the mask updates, one in 100 steps, while the masks still change."""
    return sum((100 - step) / 100 for step in steps[:400])


def test_swap_is_faster_than_union_and_neither_beats_its_fastest_step(steps):
    for model in fake_training.MODELS:
        times = times_of(steps, model)
        union, swap = (pretraining.whole_run(times, 0.95, growth) for growth in ("union", "swap"))
        assert 1 < union.speed_up < swap.speed_up < times.dense / times.sparse[0.95]
        assert 0 < swap.masked_share < union.masked_share < 1


def test_slower_mask_updates_make_a_pretraining_slower(steps):
    times = times_of(steps, "gpt2")
    for slower in (times._replace(update=10 * times.update), times._replace(sparse_update=10 * times.sparse_update)):
        slow, fast = (pretraining.whole_run(case, 0.9, "swap") for case in (slower, times))
        assert slow.speed_up < fast.speed_up
        assert 0 < fast.update_share < slow.update_share


def test_mask_updates_add_a_hundredth_of_their_time_until_the_masks_are_fixed():
    times = pretraining.StepTimes(100.0, 100.0, 40.0, {0.8: 200.0})
    # Always masked-dense: a hundredth of 40 ms in four of five steps.
    assert pretraining.whole_run(times, 0.8, "swap") == pytest.approx((100 / (100 + 0.32), 1.0, 0.0032))


def test_table_and_figure_agree_on_the_sparsity_that_reaches_the_papers_value(steps):
    frame = paper_figures.load("pretraining_table").rows(steps)
    row = frame[(frame["model"] == "gpt2-xl") & (frame["sparsity"] == 0.95)].iloc[0]
    times = times_of(steps, "gpt2-xl")
    passed = row["swap_passes_at"]
    assert pretraining.whole_run(times, passed, "swap").speed_up >= 1.11
    assert pretraining.whole_run(times, passed - 0.01, "swap").speed_up < 1.11
    text = words(paper_figures.load("pretraining_speedup").draw(steps))
    assert f"swap {row['swap_speed_up']:.2f}×, 1.11× from {100 * passed:g} %" in text
    slow = pretraining.StepTimes(100.0, 100.0, 0.0, {0.8: 99.0, 0.9: 98.0})
    assert pretraining.passed_at(slow, "swap") is None


def test_a_speed_up_just_below_the_papers_is_not_rounded_to_it():
    def whole(last):
        times = pretraining.StepTimes(100.0, 102.0, 1.0, {0.8: 90.0, 0.95: last})
        return times, pretraining.whole_run(times, 0.95, "swap").speed_up

    times, speed_up = next(found for found in map(whole, range(85, 60, -1)) if found[1] > 1.1052)
    assert 1.105 < speed_up < 1.11
    axes = Figure().add_subplot()
    paper_figures.load("pretraining_speedup")._panel(axes, times, "black")
    (text,) = [text.get_text() for text in axes.texts if "swap" in text.get_text()]
    assert f"swap {speed_up:.3f}×, never 1.11×" in text
    # The text stands above all lines.
    low, high = axes.get_ylim()
    values = [value for line in axes.lines for value in line.get_ydata()]
    assert low < min(values)
    assert max(values) < low + 0.8 * (high - low)


def test_memory_bars_show_the_recorded_peak_and_stack_the_uses(steps):
    drawn = paper_figures.load("training_memory").draw(steps)
    (panel,) = [axes for axes in drawn.axes if axes.get_title(loc="left").startswith("GPT-2 XL")]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["dense", "masked", "80 %", "90 %", "95 %"]
    # 5.2 GB and 4.5 times the weights.
    assert panel.texts[0].get_text() == f"{5.2 + 4.5 * 6.2:.3g}"
    assert panel.texts[-1].get_text() == f"{5.2 + 4.5 * 6.2 * (1 - 0.6 * 0.95):.3g}"
    tallest = max(patch.get_y() + patch.get_height() for patch in panel.patches)
    assert tallest == pytest.approx(4 * 6.2 + 4 + 2 * 6.2)


def test_the_bars_of_the_breakdown_add_up_to_the_step(steps):
    drawn = paper_figures.load("time_breakdown").draw(steps)
    (panel,) = [axes for axes in drawn.axes if axes.get_title(loc="left").startswith("GPT-2, ")]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["dense", "80 %", "90 %", "95 %"]
    dense = [patch for patch in panel.patches if abs(patch.get_y() + patch.get_height() / 2) < 1e-9]
    assert sum(patch.get_width() for patch in dense) == pytest.approx(50.0)
    assert panel.texts[0].get_text() == " 50"


def test_a_step_whose_parts_were_not_timed_is_drawn_as_an_outline(tmp_path):
    records = [fake_training.make_record_of(fake_training.make_point("gpt2", s)) for s in (0.8, 0.95)]
    again = []
    for record in records:
        if record["point"]["sparsity"] == 0.8:
            kept = [m for m in record["result"]["metrics"] if not m["metric"].startswith("time_")]
            point = fake_training.make_point("gpt2", 0.8)
            result = record["result"] | {"metrics": kept}
            record = fake_training.make_record(point, status="ok", result=result, run=record["run"])
        again.append(record)
    for case, outlines in ((records, 0), (again, 1)):
        export(case, tmp_path / str(outlines))
        drawn = paper_figures.load("time_breakdown").draw(load_table(tmp_path / "none", tmp_path / str(outlines)))
        (panel,) = [axes for axes in drawn.axes if axes.get_title(loc="left").startswith("GPT-2, ")]
        hollow = [patch for patch in panel.patches if patch.get_facecolor()[3] == 0]
        assert len(hollow) == outlines
        named = {text.get_text() for legend in drawn.legends for text in legend.get_texts()}
        assert ("whole step, parts not measured" in named) is bool(outlines)
    step = next(m["value"] for m in records[0]["result"]["metrics"]
                if (m["provider"], m["metric"]) == ("ours", "step_time"))  # fmt: skip
    assert hollow[0].get_width() == pytest.approx(step)


def test_the_table_of_mlps_gives_the_speed_up_over_compiled_dense_and_over_stk(tmp_path):
    export([fake_training.mlp_record(0.9), fake_training.mlp_record(0.8, "cpu-imaginary-processor")], tmp_path)
    module = paper_figures.load("training_mlp_table")
    frame = module.rows(load_table(tmp_path / "none", tmp_path))
    ours = frame[frame["status"] == "ok"]
    assert ours[["sparsity", "speed_up", "over_stk", "live_hidden"]].to_numpy().tolist() == [[0.9, 4.0, 1.5, 0.55]]
    shown = module.printed(frame)
    assert {"4.00×", "1.50×", "55 %", "uniform"} <= set(shown[shown["note"] == ""].iloc[0])
    assert "not run: some are dead" in set(shown["note"])
